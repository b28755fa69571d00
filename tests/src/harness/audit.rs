//! The API server's audit log: who asked for what. The honest way to prove what a program does not do.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::state_directory;

/// The service account of the installed operator.
pub const OPERATOR: &str = "system:serviceaccount:vx11-system:vx11-operator";

/// One request that the API server answered.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `create`, `get`, `watch`, …
    pub verb: String,
    /// API group; empty for the core one.
    pub group: String,
    /// Resource with its subresource, such as `vx11clusters/status`.
    pub resource: String,
    /// Namespace; empty for the whole cluster.
    pub namespace: String,
    /// Name of the object; empty for lists and creations.
    pub name: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl Asked {
    /// Whether it changes something. Leases apart, which every leader renews.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !["get", "list", "watch"].contains(&self.verb.as_str())
            && self.resource != "leases"
            // Questions about rights are creations by their verb only.
            && self.group != "authorization.k8s.io"
    }
}

/// A place in the audit log, from which it is read on.
pub struct Audit {
    folder: PathBuf,
    /// Of the file that is being written; `None` before everything, older files included.
    position: Option<u64>,
}

impl Audit {
    /// Begins at the log's beginning.
    #[must_use]
    pub fn from_beginning() -> Self {
        let folder = state_directory().join("audit");
        assert!(
            folder.join("audit.log").exists(),
            "{} has no audit.log: only the cluster of `make cluster` has one",
            folder.display()
        );
        Self { folder, position: None }
    }

    /// Begins now.
    #[must_use]
    pub fn from_now() -> Self {
        let mut audit = Self::from_beginning();
        audit.position = Some(audit.length());
        audit
    }

    /// What a user asked since the last look.
    pub fn read(&mut self, user: &str) -> Vec<Asked> {
        let mut asked = Vec::new();
        let rotated = self.rotated();
        match self.position {
            None => {
                for path in &rotated {
                    read_file(path, 0, user, &mut asked);
                }
            }
            // The file became too long and was put aside since the last look.
            Some(position) if self.length() < position => {
                read_file(rotated.last().unwrap(), position, user, &mut asked);
                self.position = None;
            }
            Some(_) => {}
        }
        let current = self.folder.join("audit.log");
        self.position = Some(read_file(&current, self.position.unwrap_or(0), user, &mut asked));
        asked
    }

    fn length(&self) -> u64 {
        std::fs::metadata(self.folder.join("audit.log")).unwrap().len()
    }

    /// Files that became too long, oldest first; their names are times.
    fn rotated(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = entries.filter(|path| path.to_string_lossy().contains("/audit-")).collect();
        paths.sort();
        paths
    }
}

/// Reads what a user asked from a position on; the position after the last whole line.
fn read_file(path: &Path, mut position: u64, user: &str, asked: &mut Vec<Asked>) -> u64 {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(position)).unwrap();
    let (mut reader, mut line) = (BufReader::new(file), String::new());
    // A line without an end is still being written: it is read next time.
    while reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        position += line.len() as u64;
        if line.contains(user) {
            asked.extend(parse(&line, user));
        }
        line.clear();
    }
    position
}

fn parse(line: &str, user: &str) -> Option<Asked> {
    let entry: Entry =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("audit log: {error}: {line}"));
    if entry.user.username != user {
        return None;
    }
    let object = entry.object_ref?;
    let resource = match object.subresource {
        Some(subresource) => format!("{}/{subresource}", object.resource),
        None => object.resource,
    };
    Some(Asked {
        verb: entry.verb,
        group: object.api_group,
        resource,
        namespace: object.namespace,
        name: object.name,
        code: entry.response_status.map_or(0, |status| status.code),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ObjectRef {
    resource: String,
    subresource: Option<String>,
    api_group: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_a_request() {
        let line = r#"{"verb":"patch","user":{"username":"a"},"objectRef":{"resource":"vx11clusters","namespace":"n","name":"c","apiGroup":"vx11.io","subresource":"status"},"responseStatus":{"code":200}}"#;
        let asked = parse(line, "a").unwrap();
        assert_eq!((asked.resource.as_str(), asked.code), ("vx11clusters/status", 200));
        assert!(asked.is_write());
        assert!(parse(line, "b").is_none());
    }

    #[test]
    fn questions_and_leases_are_no_writes() {
        for (verb, group, resource) in [
            ("get", "", "pods"),
            ("update", "coordination.k8s.io", "leases"),
            ("create", "authorization.k8s.io", "selfsubjectaccessreviews"),
        ] {
            let line = format!(
                r#"{{"verb":"{verb}","user":{{"username":"a"}},"objectRef":{{"resource":"{resource}","apiGroup":"{group}"}}}}"#
            );
            assert!(!parse(&line, "a").unwrap().is_write(), "{verb} {resource}");
        }
    }
}
