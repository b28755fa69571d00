//! Leader election by a Lease, and the guard that every write passes.
//!
//! Written here rather than taken from a package for three promises: a standby takes over within a second
//! of a graceful stop, clocks of different nodes are never compared, and a leader that cannot renew stops
//! writing before anybody else may start.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};

/// How long a lease is valid after it was last seen to change.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long after its last renewal a leader still writes. With [`REQUEST_DEADLINE`] it stays below
/// [`LEASE_DURATION`], so that the last write of the old leader ends before the first of the new one.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often a standby looks, and a leader retries.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one request to the API server may take, writes included.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(4);

/// Whether this process may write now. Cheap to clone and to ask.
#[derive(Clone, Debug, Default)]
pub struct LeaseGuard {
    valid_until: Arc<Mutex<Option<Instant>>>,
}

impl LeaseGuard {
    /// Whether the lease is held and was renewed recently enough.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.deadline().is_some_and(|deadline| Instant::now() < deadline)
    }

    fn deadline(&self) -> Option<Instant> {
        *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, valid_until: Option<Instant>) {
        *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner) = valid_until;
    }

    /// A guard that is open for a minute, for tests of what stands behind it.
    #[cfg(test)]
    pub(crate) fn open() -> Self {
        let guard = Self::default();
        guard.set(Some(Instant::now() + Duration::from_mins(1)));
        guard
    }
}

/// One candidate for one Lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
    guard: LeaseGuard,
    last_change: Option<Observation>,
}

/// When the Lease was seen to change last, by this process's own clock.
struct Observation {
    version: Option<String>,
    at: Instant,
}

/// What a Lease means for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Held by this process.
    Ours,
    /// Held by nobody, or by somebody who stopped renewing.
    Free,
    /// Held by somebody else.
    Theirs,
}

impl Elector {
    /// A candidate with a name of its own (its pod's), which shows in the Lease.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            guard: LeaseGuard::default(),
            last_change: None,
        }
    }

    /// The guard that opens and closes with the lease.
    #[must_use]
    pub fn guard(&self) -> LeaseGuard {
        self.guard.clone()
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot read or take the lease; trying again");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Renews until the lease is lost.
    pub async fn hold(&mut self) {
        let mut pause = RENEW_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            match self.attempt().await {
                Ok(true) => pause = RENEW_EVERY,
                Ok(false) => {
                    tracing::error!(lease = self.name, "the lease was taken by another controller");
                    self.guard.set(None);
                    return;
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot renew the lease; trying again");
                    pause = LOOK_EVERY;
                    if !self.guard.may_write() {
                        self.guard.set(None);
                        return;
                    }
                }
            }
        }
    }

    /// Gives the lease back, so that a standby takes over at once.
    pub async fn release(&mut self) {
        let held = self.guard.deadline().is_some();
        self.guard.set(None);
        if !held {
            return;
        }
        if let Err(error) = self.try_release().await {
            tracing::warn!(lease = self.name, %error, "cannot release the lease; it expires by itself");
        }
    }

    async fn try_release(&self) -> Result<(), kube::Error> {
        if let Some(mut lease) = self.api.get_opt(&self.name).await?
            && holder(&lease) == Some(&self.identity)
        {
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = None;
            spec.renew_time = None;
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    /// One look at the Lease, and one try to take or renew it. True while it is held.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        tokio::time::timeout(REQUEST_DEADLINE, self.try_take())
            .await
            .unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
    }

    async fn try_take(&mut self) -> Result<bool, kube::Error> {
        // Counted from before the request: the API server may have written any time after.
        let started = Instant::now();
        let taken = match self.api.get_opt(&self.name).await? {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    spec: Some(LeaseSpec::default()),
                };
                let lease = claim(lease, &self.identity, Timestamp::now());
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                self.note(&lease);
                if self.standing(&lease) == Standing::Theirs {
                    return Ok(false);
                }
                let lease = claim(lease, &self.identity, Timestamp::now());
                // The resourceVersion in it makes the API server refuse when anybody was faster.
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match taken {
            Ok(lease) => {
                self.note(&lease);
                self.guard.set(Some(started + WRITE_DEADLINE));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn note(&mut self, lease: &Lease) {
        let version = &lease.metadata.resource_version;
        if self.last_change.as_ref().is_none_or(|last| last.version != *version) {
            self.last_change = Some(Observation { version: version.clone(), at: Instant::now() });
        }
    }

    fn standing(&self, lease: &Lease) -> Standing {
        let unchanged_for = self.last_change.as_ref().map_or(Duration::ZERO, |last| last.at.elapsed());
        standing(lease, &self.identity, unchanged_for)
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

fn standing(lease: &Lease, identity: &str, unchanged_for: Duration) -> Standing {
    match holder(lease) {
        None => Standing::Free,
        Some(holder) if holder == identity => Standing::Ours,
        Some(_) => {
            let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
            let duration = seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(LEASE_DURATION, Duration::from_secs);
            if unchanged_for > duration { Standing::Free } else { Standing::Theirs }
        }
    }
}

/// The Lease as this candidate wants it: renewed when it holds it, taken over otherwise.
fn claim(mut lease: Lease, identity: &str, now: Timestamp) -> Lease {
    let renewed = holder(&lease).is_some_and(|holder| holder == identity);
    let spec = lease.spec.get_or_insert_default();
    spec.renew_time = Some(MicroTime(now));
    spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
    if !renewed {
        spec.holder_identity = Some(identity.to_owned());
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
    }
    lease
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use rstest::rstest;

    use super::*;
    use crate::fake_api::{FakeApi, Fault};

    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/simple-operator/leases/simple-lease";

    fn elector(api: &FakeApi, identity: &str) -> Elector {
        Elector::new(api.client.clone(), "simple-operator", "simple-lease", identity)
    }

    #[tokio::test]
    async fn a_standby_takes_over_at_its_first_look_after_a_graceful_stop() {
        let api = FakeApi::start().await;
        let (mut leader, mut standby) = (elector(&api, "leader"), elector(&api, "standby"));
        assert!(leader.attempt().await.unwrap() && leader.guard().may_write());
        assert!(!standby.attempt().await.unwrap() && !standby.guard().may_write());

        leader.release().await;
        assert!(!leader.guard().may_write());
        let released = api.object(LEASE).unwrap()["spec"].clone();
        assert_eq!(released.get("holderIdentity"), None, "{released}");

        assert!(standby.attempt().await.unwrap() && standby.guard().may_write());
        let taken = api.object(LEASE).unwrap()["spec"].clone();
        assert_eq!((&taken["holderIdentity"], &taken["leaseTransitions"]), (&"standby".into(), &1.into()));
    }

    #[tokio::test]
    async fn whoever_does_not_hold_the_lease_gives_nothing_back() {
        let api = FakeApi::start().await;
        let (mut leader, mut standby) = (elector(&api, "leader"), elector(&api, "standby"));
        assert!(leader.attempt().await.unwrap());
        assert!(!standby.attempt().await.unwrap());
        standby.release().await;
        assert_eq!(api.object(LEASE).unwrap()["spec"]["holderIdentity"], "leader");

        // One that was taken over without having noticed, neither.
        api.merge(LEASE, &serde_json::json!({"spec": {"holderIdentity": "somebody"}}));
        leader.release().await;
        assert!(!leader.guard().may_write());
        assert_eq!(api.object(LEASE).unwrap()["spec"]["holderIdentity"], "somebody");
    }

    #[tokio::test]
    async fn of_two_that_see_a_free_lease_one_takes_it() {
        let api = FakeApi::start().await;
        let (mut first, mut second) = (elector(&api, "first"), elector(&api, "second"));
        assert!(first.attempt().await.unwrap());
        first.release().await;
        api.fail(Method::PUT, "/leases/simple-lease", 1, Fault::Refuse(409, "the object has been modified"));
        assert!(!second.attempt().await.unwrap() && !second.guard().may_write());
        assert!(second.attempt().await.unwrap() && second.guard().may_write());
    }

    fn lease(holder: Option<&str>) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[rstest]
    #[case(None, 0, Standing::Free)]
    #[case(Some(""), 0, Standing::Free)]
    #[case(Some("me"), 600, Standing::Ours)]
    #[case(Some("other"), 0, Standing::Theirs)]
    #[case(Some("other"), 15, Standing::Theirs)]
    #[case(Some("other"), 16, Standing::Free)]
    fn a_lease_is_free_when_nobody_renews_it(
        #[case] holder: Option<&str>,
        #[case] unchanged_seconds: u64,
        #[case] expected: Standing,
    ) {
        let unchanged_for = Duration::from_secs(unchanged_seconds);
        assert_eq!(standing(&lease(holder), "me", unchanged_for), expected);
    }

    #[test]
    fn a_takeover_counts_and_a_renewal_does_not() {
        let now = Timestamp::UNIX_EPOCH;
        let taken = claim(lease(Some("other")), "me", now).spec.unwrap();
        assert_eq!(taken.lease_transitions, Some(0));
        let again = claim(Lease { spec: Some(taken.clone()), ..Lease::default() }, "me", now);
        assert_eq!(again.spec.unwrap().lease_transitions, taken.lease_transitions);
    }

    #[test]
    fn the_last_write_of_an_old_leader_ends_before_a_new_one_starts() {
        assert!(WRITE_DEADLINE + REQUEST_DEADLINE < LEASE_DURATION);
        assert!(RENEW_EVERY + REQUEST_DEADLINE < WRITE_DEADLINE);
    }

    #[test]
    fn a_guard_is_closed_until_the_lease_is_held() {
        assert!(!LeaseGuard::default().may_write());
        assert!(LeaseGuard::open().may_write());
    }
}
