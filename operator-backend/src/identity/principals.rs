//! Who may come in: named principals, each with any number of tokens, compared in constant time.

use std::{collections::BTreeMap, sync::Arc};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::Secret;

/// Somebody who authenticated: the name of a configured principal. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Arc<str>);

impl Principal {
    /// A principal by its name; whether it is configured is the caller's business.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name, `[A-Za-z0-9._-]{1,253}` when it comes from the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// What is accepted as the name of a principal: what a key of a Kubernetes Secret may be.
#[must_use]
pub fn is_principal_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

struct Entry {
    digest: [u8; 32],
    principal: u32,
}

/// Every principal in force and the digests of their tokens. The tokens themselves are not kept.
#[derive(Default)]
pub struct Principals {
    entries: Vec<Entry>,
    names: Vec<Principal>,
}

impl Principals {
    /// Principals from names and tokens. A token that two names share belongs to the later name.
    #[must_use]
    pub fn new(tokens: &BTreeMap<String, Vec<Secret>>) -> Self {
        let mut principals = Self::default();
        for (name, secrets) in tokens.iter().filter(|(_, secrets)| !secrets.is_empty()) {
            let Ok(index) = u32::try_from(principals.names.len()) else {
                break;
            };
            principals.names.push(Principal::new(name));
            principals.entries.extend(
                secrets
                    .iter()
                    .map(|secret| Entry { digest: digest(secret.expose().as_bytes()), principal: index }),
            );
        }
        principals
    }

    /// The principal that has this token. Takes the same time whichever token matches, or none: both
    /// sides are digests of one length and every entry is compared.
    #[must_use]
    pub fn authenticate(&self, token: &[u8]) -> Option<&Principal> {
        let presented = digest(token);
        let (mut found, mut index) = (Choice::from(0), u32::MAX);
        for entry in &self.entries {
            let equal = entry.digest.ct_eq(&presented);
            index.conditional_assign(&entry.principal, equal);
            found |= equal;
        }
        if bool::from(found) { self.names.get(usize::try_from(index).ok()?) } else { None }
    }

    /// The configured principal of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Principal> {
        // Built from a BTreeMap: sorted.
        let index = self.names.binary_search_by(|principal| principal.name().cmp(name)).ok()?;
        self.names.get(index)
    }

    /// Every principal, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Principal> {
        self.names.iter()
    }

    /// Whether nobody can come in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Number of tokens over all principals.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.entries.len()
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn principals(list: &[(&str, &[&str])]) -> Principals {
        Principals::new(
            &list
                .iter()
                .map(|(name, tokens)| {
                    ((*name).to_owned(), tokens.iter().map(|t| Secret::from((*t).to_owned())).collect())
                })
                .collect(),
        )
    }

    #[test]
    fn every_token_of_every_principal_works_and_no_other() {
        let principals = principals(&[("a", &["old", "new"]), ("b", &["other"]), ("none", &[])]);
        let name = |token: &str| principals.authenticate(token.as_bytes()).map(Principal::name);
        assert_eq!(name("old"), Some("a"));
        assert_eq!(name("new"), Some("a"));
        assert_eq!(name("other"), Some("b"));
        assert_eq!(name("ol"), None);
        assert_eq!(name(""), None);
        assert_eq!(principals.named("b").map(Principal::name), Some("b"));
        assert!(principals.named("none").is_none());
    }

    proptest! {
        #[test]
        fn nothing_but_a_configured_token_authenticates(token in "\\PC{0,80}") {
            let principals = principals(&[("a", &["secret-a"]), ("b", &["secret-b"])]);
            prop_assert_eq!(
                principals.authenticate(token.as_bytes()).is_some(),
                token == "secret-a" || token == "secret-b"
            );
        }
    }
}
