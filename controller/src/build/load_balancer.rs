//! Routes in front of the instances, one file per kind of route.

pub mod ingress;
