//! Who exists: principals with their tokens, signing keys and the control token, read from files and followed.

mod files;
mod identities;
mod keys;
mod principals;

pub use self::{
    files::ReadError,
    identities::{Identities, IdentityError},
    keys::{KeyError, KeyRing, SigningKey, SigningKeys},
    principals::{Principal, Principals, is_principal_name},
};
