//! Principals, signing keys and control token in force, and the task that keeps them current.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    files::{self, ReadError, Snapshot},
    keys::{KeyError, SigningKeys},
    principals::{Principal, Principals},
};
use crate::config::{AuthConfig, Secret};

/// How often the files are looked at: a rotation is in force a second after the kubelet swapped it in.
const LOOK: Duration = Duration::from_secs(1);

/// Settings that nobody can come in with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A configured path cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A signing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Shared handle to what is in force; clones see a reload at once.
#[derive(Clone)]
pub struct Identities {
    principals: Arc<watch::Sender<Arc<Principals>>>,
    control_token: Arc<watch::Sender<Option<[u8; 32]>>>,
    keys: SigningKeys,
    /// What the files said when they were last put in force.
    applied: Arc<Mutex<Option<Snapshot>>>,
}

impl Identities {
    /// Reads everything once. Without a key directory the signing keys are random and this process' own.
    ///
    /// # Errors
    /// [`IdentityError`] when a configured path cannot be read or a key cannot be used.
    pub fn load(config: &AuthConfig) -> Result<Self, IdentityError> {
        let identities = Self::with_principals(&BTreeMap::new());
        identities.apply(config, files::read(config)?)?;
        if config.signing_keys_dir.is_none() {
            tracing::info!(
                "no VX11_SIGNING_KEYS_DIR: tokens and cursors are signed with a key of this process alone"
            );
        }
        Ok(identities)
    }

    /// Fixed principals and a random key, for tests and embedding.
    #[must_use]
    pub fn with_principals(tokens: &BTreeMap<String, Vec<Secret>>) -> Self {
        Self {
            principals: Arc::new(watch::Sender::new(Arc::new(Principals::new(tokens)))),
            control_token: Arc::new(watch::Sender::new(None)),
            keys: SigningKeys::ephemeral(),
            applied: Arc::default(),
        }
    }

    /// The principals in force now; hold them no longer than one request.
    #[must_use]
    pub fn principals(&self) -> Arc<Principals> {
        self.principals.borrow().clone()
    }

    /// Sees every later change of the principals, for closing streams of those that are gone.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Principals>> {
        self.principals.subscribe()
    }

    /// The configured principal of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Principal> {
        self.principals.borrow().named(name).cloned()
    }

    /// The signing keys in force.
    #[must_use]
    pub fn keys(&self) -> &SigningKeys {
        &self.keys
    }

    /// Whether `token` is the control token; `None` when there is none to compare with.
    #[must_use]
    pub fn is_control_token(&self, token: &[u8]) -> Option<bool> {
        let expected = (*self.control_token.borrow())?;
        let presented: [u8; 32] = Sha256::digest(token).into();
        Some(bool::from(expected.ct_eq(&presented)))
    }

    /// Puts a snapshot in force, if it differs from the one that is.
    fn apply(&self, config: &AuthConfig, snapshot: Snapshot) -> Result<(), KeyError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if applied.as_ref() == Some(&snapshot) {
            return Ok(());
        }
        if config.signing_keys_dir.is_some() {
            let (current, previous) = (snapshot.current_key.as_deref(), snapshot.previous_key.as_deref());
            self.keys.reload(current, previous, Instant::now())?;
        }
        self.control_token.send_replace(
            snapshot.control_token.as_ref().map(|token| Sha256::digest(token.expose().as_bytes()).into()),
        );
        let principals = Principals::new(&snapshot.principals);
        let names: Vec<&str> = principals.iter().map(Principal::name).collect();
        if principals.is_empty() {
            tracing::warn!(
                "no principal token is configured: set VX11_PRINCIPAL_TOKEN or VX11_PRINCIPAL_TOKENS_DIR, \
                 or every request is refused"
            );
        } else {
            tracing::info!(principals = names.join(","), tokens = principals.tokens(), "principals in force");
        }
        self.principals.send_replace(Arc::new(principals));
        *applied = Some(snapshot);
        Ok(())
    }

    /// Follows the files until the process ends. What cannot be read keeps what is in force, and is
    /// logged when it begins and when it ends.
    pub async fn follow(self, config: AuthConfig) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = String::new();
        loop {
            ticks.tick().await;
            self.keys.advance(Instant::now());
            let settings = config.clone();
            let outcome = match tokio::task::spawn_blocking(move || files::read(&settings)).await {
                Ok(Ok(snapshot)) => self.apply(&config, snapshot).map_err(|error| error.to_string()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match outcome {
                Ok(()) if !failing.is_empty() => {
                    failing.clear();
                    tracing::info!("principal and key files are readable again");
                }
                Ok(()) => {}
                Err(error) if error == failing => {}
                Err(error) => {
                    tracing::warn!(%error, "principal or key files: keeping what is in force");
                    failing = error;
                }
            }
        }
    }
}
