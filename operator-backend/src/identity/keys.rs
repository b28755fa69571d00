//! The keys that all instances sign with: `current` signs, `current` and `previous` verify.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The shortest key that is accepted, in bytes: 128 bits, the strength of everything around it.
const SHORTEST_KEY: usize = 16;

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
    /// Verifies what was signed before the rotation.
    pub previous: Option<SigningKey>,
}

impl KeyRing {
    /// Every key that verifies, the current one first.
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
pub struct SigningKeys(Arc<watch::Sender<Arc<KeyRing>>>);

impl SigningKeys {
    /// Keys that only this process has.
    #[must_use]
    pub fn ephemeral() -> Self {
        let ring = KeyRing { current: SigningKey::ephemeral(), previous: None };
        Self(Arc::new(watch::Sender::new(Arc::new(ring))))
    }

    /// Keys from the contents of the files `current` and `previous`.
    ///
    /// # Errors
    /// [`KeyError`] when `current` is missing or a key is too short.
    pub fn from_files(current: Option<&[u8]>, previous: Option<&[u8]>) -> Result<Self, KeyError> {
        let keys = Self::ephemeral();
        keys.reload(current, previous)?;
        Ok(keys)
    }

    /// Replaces the keys in force.
    ///
    /// # Errors
    /// As [`Self::from_files`]; the keys in force stay.
    pub fn reload(&self, current: Option<&[u8]>, previous: Option<&[u8]>) -> Result<(), KeyError> {
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
        self.0.send_replace(Arc::new(KeyRing { current, previous }));
        Ok(())
    }

    /// The keys in force now; hold them no longer than one request.
    #[must_use]
    pub fn load(&self) -> Arc<KeyRing> {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_the_previous_key_for_verifying() {
        let keys = SigningKeys::from_files(Some(b"0123456789abcdef\n"), None).ok().unwrap();
        let before = keys.load().current.id();
        keys.reload(Some(b"fedcba9876543210"), Some(b"0123456789abcdef")).unwrap();
        let ring = keys.load();
        assert_ne!(ring.current.id(), before);
        assert!(ring.verifying().any(|key| key.id() == before));
    }

    #[test]
    fn a_bad_file_leaves_the_keys_in_force() {
        let keys = SigningKeys::from_files(Some(b"0123456789abcdef"), None).ok().unwrap();
        let before = keys.load().current.id();
        assert_eq!(keys.reload(None, None), Err(KeyError::NoCurrentKey));
        assert_eq!(keys.reload(Some(b"short"), None), Err(KeyError::TooShort("current")));
        assert_eq!(keys.reload(Some(b"0123456789abcdef"), Some(b"")), Err(KeyError::TooShort("previous")));
        assert_eq!(keys.load().current.id(), before);
    }

    #[test]
    fn domains_and_keys_separate_signatures() {
        let (a, b) = (SigningKey::new(b"a"), SigningKey::new(b"b"));
        assert_eq!(a.sign("x", &[b"1", b"2"]), a.sign("x", &[b"12"]));
        assert_ne!(a.sign("x", &[b"1"]), a.sign("y", &[b"1"]));
        assert_ne!(a.sign("x", &[b"1"]), b.sign("x", &[b"1"]));
    }
}
