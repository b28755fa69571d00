//! The mounted files that auth follows: principal tokens, signing keys, control token. Read again every
//! second, which sees a kubelet's symlink swap, an edit in place and a bind mount alike.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::principals::is_principal_name;
use crate::config::{AuthConfig, Secret, secret};

/// A file bigger than this is not a list of tokens.
const LARGEST_FILE: u64 = 1024 * 1024;

/// What the files and the environment say at one moment.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    pub(super) principals: BTreeMap<String, Vec<Secret>>,
    pub(super) current_key: Option<Vec<u8>>,
    pub(super) previous_key: Option<Vec<u8>>,
    pub(super) control_token: Option<Secret>,
}

/// A file or directory that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {error}")]
pub struct ReadError {
    path: PathBuf,
    error: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ReadError {
    let path = path.to_owned();
    move |error| ReadError { path, error }
}

/// Reads everything that `config` points to.
pub(super) fn read(config: &AuthConfig) -> Result<Snapshot, ReadError> {
    let mut snapshot = Snapshot::default();
    let environment = [
        ("operator", &config.operator_token),
        ("gateway", &config.gateway_token),
        ("tentaculo-link", &config.tentaculo_link_token),
        ("principal", &config.principal_token),
    ];
    for (name, token) in environment {
        if let Some(token) = secret(token.as_ref()) {
            snapshot.principals.entry(name.to_owned()).or_default().push(token.clone());
        }
    }
    if let Some(directory) = &config.principal_tokens_dir {
        for (name, path) in token_files(directory)? {
            let Some(bytes) = file(&path)? else { continue };
            let tokens = lines(&bytes);
            if !tokens.is_empty() {
                snapshot.principals.entry(name).or_default().extend(tokens);
            }
        }
    }
    if let Some(directory) = &config.signing_keys_dir {
        snapshot.current_key = file(&directory.join("current"))?;
        snapshot.previous_key = file(&directory.join("previous"))?.filter(|key| !key.trim_ascii().is_empty());
    }
    if let Some(path) = &config.control_token_file {
        snapshot.control_token = file(path)?.and_then(|bytes| lines(&bytes).into_iter().next());
    }
    Ok(snapshot)
}

/// The token files of a directory. Dotfiles and `..data` belong to the kubelet's way of swapping.
fn token_files(directory: &Path) -> Result<Vec<(String, PathBuf)>, ReadError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_principal_name(name) && path.is_file() {
            files.push((name.to_owned(), path));
        }
    }
    Ok(files)
}

/// Content of a file, `None` if there is none.
fn file(path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    if length > LARGEST_FILE {
        return Err(at(path)(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        // Swapped away between the two calls; the next look finds what replaced it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn lines(bytes: &[u8]) -> Vec<Secret> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| Secret::from(line.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vx11-auth-files-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_secret_volume_is_read_as_principals() {
        let root = directory("volume");
        let data = root.join("..2026_11_23");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("team-a"), "one\ntwo\n\n").unwrap();
        let _ = std::fs::remove_file(root.join("..data"));
        std::os::unix::fs::symlink(&data, root.join("..data")).unwrap();
        let _ = std::fs::remove_file(root.join("team-a"));
        std::os::unix::fs::symlink("..data/team-a", root.join("team-a")).unwrap();
        std::fs::write(root.join(".hidden"), "no").unwrap();

        let flag = root.to_str().unwrap();
        let config =
            Config::from_flags(["--principal-tokens-dir", flag, "--principal-token", "env"]).ok().unwrap();
        let snapshot = read(&config.auth).ok().unwrap();
        let found: Vec<_> = snapshot
            .principals
            .iter()
            .map(|(name, tokens)| (name.as_str(), tokens.iter().map(Secret::expose).collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, [("principal", vec!["env"]), ("team-a", vec!["one", "two"])]);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_it() {
        let config = Config::from_flags(["--principal-tokens-dir", "/nonexistent/vx11"]).ok().unwrap();
        let error = read(&config.auth).err().unwrap().to_string();
        assert!(error.contains("/nonexistent/vx11"), "{error}");
    }
}
