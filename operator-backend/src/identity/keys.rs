//! The keys that all instances sign with: `current` and `previous` verify, `current` signs once every instance
//! has it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The shortest key that is accepted, in bytes: 128 bits, the strength of everything around it.
const SHORTEST_KEY: usize = 16;

/// How long `previous` goes on signing beside a `current` that is new to this process. A kubelet brings a changed
/// Secret to its pods up to a minute (its sync period) and a little (its cache) later than another one, and until
/// then the other's instances refuse what only the new key has signed. A process that starts cannot know how long
/// its neighbours have had the files, so the same holds for it.
pub const HANDOVER: Duration = Duration::from_secs(90);

/// One signing key, kept as the keyed state of HMAC-SHA-256 so that a signature costs two or three
/// compressions. Has no `Debug`: the state is as good as the key.
#[derive(Clone)]
pub struct SigningKey {
    keyed: Hmac<Sha256>,
    id: [u8; 4],
}

impl SigningKey {
    /// A key from the bytes of its file.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        // Hashing to a fixed length makes every length valid and pads to HMAC's block.
        let mut block = [0_u8; 64];
        block[..32].copy_from_slice(&Sha256::digest(bytes));
        let keyed = Hmac::<Sha256>::new(&block.into());
        let mut key = Self { keyed, id: [0; 4] };
        let [a, b, c, d, ..] = key.sign("vx11 key id", &[]);
        key.id = [a, b, c, d];
        key
    }

    /// A random key, for an instance that shares it with nobody.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self::new(&rand::random::<[u8; 32]>())
    }

    /// MAC over `parts` in one domain. A domain is a constant and prefix-free among all in use; parts are
    /// concatenated, so all but the last must have a fixed length.
    #[must_use]
    pub fn sign(&self, domain: &'static str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.keyed.clone();
        mac.update(domain.as_bytes());
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Public name of the key: four bytes that say nothing about it.
    #[must_use]
    pub fn id(&self) -> [u8; 4] {
        self.id
    }
}

/// The keys in force.
#[derive(Clone)]
pub struct KeyRing {
    /// Signs and verifies.
    pub current: SigningKey,
    /// Verifies only: what was signed before the rotation or, during the handover, what others sign already.
    pub previous: Option<SigningKey>,
}

impl KeyRing {
    /// Every key that verifies, the one that signs first.
    pub fn verifying(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

/// A key file that cannot be used; the text names no byte of it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Without it nothing can be signed.
    #[error("the signing key directory has no file `current`")]
    NoCurrentKey,
    /// Too easy to guess.
    #[error("signing key `{0}` is shorter than {SHORTEST_KEY} bytes")]
    TooShort(&'static str),
}

/// Shared handle to the keys in force; clones see a reload at once.
#[derive(Clone)]
pub struct SigningKeys(Arc<Inner>);

struct Inner {
    ring: watch::Sender<Arc<KeyRing>>,
    handover: Mutex<Handover>,
}

/// What becomes of the ring when the new key may sign.
#[derive(Default)]
struct Handover {
    /// The file `current` as it was last read; `None` before the first time.
    newest: Option<[u8; 4]>,
    pending: Option<(Instant, Arc<KeyRing>)>,
}

impl SigningKeys {
    /// Keys that only this process has.
    #[must_use]
    pub fn ephemeral() -> Self {
        let ring = KeyRing { current: SigningKey::ephemeral(), previous: None };
        let ring = watch::Sender::new(Arc::new(ring));
        Self(Arc::new(Inner { ring, handover: Mutex::default() }))
    }

    /// Replaces the keys by the contents of the files `current` and `previous`. Both verify from `now` on; which
    /// of them signs, see [`HANDOVER`]. Without `previous`, or when it goes, `current` signs at once.
    ///
    /// # Errors
    /// [`KeyError`] when `current` is missing or a key is too short; the keys in force stay.
    pub fn reload(
        &self,
        current: Option<&[u8]>,
        previous: Option<&[u8]>,
        now: Instant,
    ) -> Result<(), KeyError> {
        let key = |name, bytes: &[u8]| {
            let bytes = bytes.trim_ascii_end();
            if bytes.len() < SHORTEST_KEY {
                Err(KeyError::TooShort(name))
            } else {
                Ok(SigningKey::new(bytes))
            }
        };
        let current = key("current", current.ok_or(KeyError::NoCurrentKey)?)?;
        let previous = previous.map(|bytes| key("previous", bytes)).transpose()?;

        let mut handover = self.0.handover.lock().unwrap_or_else(PoisonError::into_inner);
        let begun_before = handover.pending.take().map(|(until, _)| until);
        let is_new = handover.newest.replace(current.id()) != Some(current.id());
        let until = if is_new { Some(now + HANDOVER) } else { begun_before };
        let ring = match (until, previous) {
            (Some(until), Some(previous)) => {
                let afterwards = KeyRing { current: current.clone(), previous: Some(previous.clone()) };
                handover.pending = Some((until, Arc::new(afterwards)));
                KeyRing { current: previous, previous: Some(current) }
            }
            (_, previous) => KeyRing { current, previous },
        };
        self.0.ring.send_replace(Arc::new(ring));
        Ok(())
    }

    /// Lets the new key sign once its handover is over.
    pub fn advance(&self, now: Instant) {
        let mut handover = self.0.handover.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ring)) = handover.pending.take_if(|(until, _)| *until <= now) {
            self.0.ring.send_replace(ring);
            tracing::info!("the new signing key signs");
        }
    }

    /// The keys in force now; hold them no longer than one request.
    #[must_use]
    pub fn load(&self) -> Arc<KeyRing> {
        self.0.ring.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"0123456789abcdef";
    const NEW: &[u8] = b"fedcba9876543210";

    fn id(bytes: &[u8]) -> [u8; 4] {
        SigningKey::new(bytes).id()
    }

    fn signs(keys: &SigningKeys) -> [u8; 4] {
        keys.load().current.id()
    }

    fn verifies(keys: &SigningKeys, bytes: &[u8]) -> bool {
        keys.load().verifying().any(|key| key.id() == id(bytes))
    }

    #[test]
    fn a_new_key_verifies_at_once_and_signs_when_every_instance_has_it() {
        let (keys, begun) = (SigningKeys::ephemeral(), Instant::now());
        keys.reload(Some(b"0123456789abcdef\n"), None, begun).unwrap();
        assert_eq!(signs(&keys), id(OLD));
        keys.reload(Some(NEW), Some(OLD), begun).unwrap();
        assert!(verifies(&keys, OLD) && verifies(&keys, NEW));
        keys.advance(begun + HANDOVER / 2);
        assert_eq!(signs(&keys), id(OLD));
        keys.advance(begun + HANDOVER);
        assert_eq!(signs(&keys), id(NEW));
        assert!(verifies(&keys, OLD));
        keys.reload(Some(NEW), None, begun + HANDOVER).unwrap();
        assert!(!verifies(&keys, OLD));
    }

    #[test]
    fn a_process_that_starts_during_a_rotation_signs_with_the_key_that_all_have() {
        let (keys, begun) = (SigningKeys::ephemeral(), Instant::now());
        keys.reload(Some(NEW), Some(OLD), begun).unwrap();
        assert_eq!(signs(&keys), id(OLD));
        keys.advance(begun + HANDOVER);
        assert_eq!(signs(&keys), id(NEW));
    }

    #[test]
    fn a_key_that_is_withdrawn_stops_at_once() {
        let (keys, begun) = (SigningKeys::ephemeral(), Instant::now());
        keys.reload(Some(OLD), None, begun).unwrap();
        keys.reload(Some(NEW), Some(OLD), begun).unwrap();
        keys.reload(Some(NEW), None, begun).unwrap();
        assert_eq!(signs(&keys), id(NEW));
        assert!(!verifies(&keys, OLD));
        keys.advance(begun + HANDOVER);
        assert!(!verifies(&keys, OLD));
    }

    #[test]
    fn reading_the_same_key_again_prolongs_nothing() {
        let (keys, begun) = (SigningKeys::ephemeral(), Instant::now());
        keys.reload(Some(NEW), Some(OLD), begun).unwrap();
        keys.reload(Some(NEW), Some(OLD), begun + HANDOVER / 2).unwrap();
        keys.advance(begun + HANDOVER);
        assert_eq!(signs(&keys), id(NEW));
        keys.reload(Some(NEW), Some(OLD), begun + HANDOVER).unwrap();
        assert_eq!(signs(&keys), id(NEW));
    }

    #[test]
    fn a_bad_file_leaves_the_keys_in_force() {
        let (keys, now) = (SigningKeys::ephemeral(), Instant::now());
        keys.reload(Some(OLD), None, now).unwrap();
        assert_eq!(keys.reload(None, None, now), Err(KeyError::NoCurrentKey));
        assert_eq!(keys.reload(Some(b"short"), None, now), Err(KeyError::TooShort("current")));
        assert_eq!(keys.reload(Some(OLD), Some(b""), now), Err(KeyError::TooShort("previous")));
        assert_eq!(signs(&keys), id(OLD));
    }

    #[test]
    fn domains_and_keys_separate_signatures() {
        let (a, b) = (SigningKey::new(b"a"), SigningKey::new(b"b"));
        assert_eq!(a.sign("x", &[b"1", b"2"]), a.sign("x", &[b"12"]));
        assert_ne!(a.sign("x", &[b"1"]), a.sign("y", &[b"1"]));
        assert_ne!(a.sign("x", &[b"1"]), b.sign("x", &[b"1"]));
    }
}
