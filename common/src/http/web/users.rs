//! `basic_auth_users`: names with bcrypt hashes, checked in a time that tells nothing.
//!
//! A check costs tens of milliseconds of CPU on purpose, so results are kept, and only one check runs at a time.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use ring::rand::SystemRandom;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::Semaphore;

/// Results kept of either kind, as exporter-toolkit keeps them.
const KEPT: usize = 100;
/// The hash that an unknown user is compared with, where no other is at hand; nobody is let in by it.
const NOBODY: &str = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

/// Who may ask.
#[derive(Clone)]
pub(in crate::http) struct Users(Arc<BTreeMap<String, String>>);

impl Users {
    /// Refuses what is no bcrypt hash.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, String> {
        for (user, hash) in &hashes {
            // The message of the parser may hold the hash, which belongs in no log.
            if hash.parse::<bcrypt::HashParts>().is_err() {
                return Err(format!(
                    "the password of the user {user:?} in basic_auth_users is no bcrypt hash; `htpasswd -nBC 10 USER` makes one"
                ));
            }
        }
        Ok(Self(Arc::new(hashes)))
    }

    /// Whether everybody may.
    pub(in crate::http) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an Authorization header lets the request pass.
    pub(in crate::http) async fn admit(&self, authorization: Option<&str>) -> bool {
        let Some((user, password)) = authorization.and_then(credentials) else { return false };
        let known = self.0.get(&user);
        // The same work for an unknown user, so that the time does not tell which names there are.
        let hash = known.or_else(|| self.0.values().next()).map_or(NOBODY, String::as_str).to_owned();
        let is_known = known.is_some();
        let key = Results::key(&user, is_known, &hash, &password);
        let kept = || key.as_ref().and_then(|key| results().get(key));
        if let Some(is_right) = kept() {
            return is_right && is_known;
        }
        static ONE_CHECK: Semaphore = Semaphore::const_new(1);
        // The semaphore is never closed.
        let Ok(_turn) = ONE_CHECK.acquire().await else { return false };
        if let Some(is_right) = kept() {
            return is_right && is_known;
        }
        let check = move || bcrypt::verify(password, &hash).unwrap_or(false);
        let is_right = is_known & tokio::task::spawn_blocking(check).await.unwrap_or(false);
        if let Some(key) = key {
            results().set(key, is_right);
        }
        is_right
    }
}

/// User and password of a Basic header.
fn credentials(header: &str) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.split_once(' ')?;
    let decoded = scheme
        .eq_ignore_ascii_case("basic")
        .then(|| BASE64_STANDARD.decode(encoded.trim()).ok())
        .flatten()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

type Key = [u8; 32];

/// Results by a keyed digest of what was asked: no password stays in memory, and the time that a search takes tells
/// nothing, since nobody can choose the digests.
#[derive(Default)]
struct Results {
    /// Apart, so that a flood of wrong passwords does not push out the right one.
    right: Mutex<VecDeque<Key>>,
    wrong: Mutex<VecDeque<Key>>,
}

fn results() -> &'static Results {
    static RESULTS: OnceLock<Results> = OnceLock::new();
    RESULTS.get_or_init(Results::default)
}

impl Results {
    /// `None` where the kernel gives no random numbers; then nothing is kept.
    fn key(user: &str, is_known: bool, hash: &str, password: &[u8]) -> Option<Key> {
        static SECRET: OnceLock<Option<hmac::Key>> = OnceLock::new();
        let secret = SECRET.get_or_init(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok());
        let mut digest = hmac::Context::with_key(secret.as_ref()?);
        for part in [user.as_bytes(), &[u8::from(is_known)], hash.as_bytes(), password] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.sign().as_ref().try_into().ok()
    }

    fn get(&self, key: &Key) -> Option<bool> {
        let holds =
            |keys: &Mutex<VecDeque<Key>>| keys.lock().unwrap_or_else(PoisonError::into_inner).contains(key);
        holds(&self.right).then_some(true).or_else(|| holds(&self.wrong).then_some(false))
    }

    fn set(&self, key: Key, is_right: bool) {
        let keys = if is_right { &self.right } else { &self.wrong };
        let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() == KEPT {
            keys.pop_front();
        }
        keys.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(users: &Users, user: &str, password: &str) -> bool {
        let header = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(users.admit(Some(&header)))
    }

    #[test]
    fn every_check_is_made_once_and_for_unknown_users_too() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let users = Users::new([("alice".to_owned(), hash.clone())].into()).unwrap();
        let kept = |user: &str, is_known, password: &str| {
            results().get(&Results::key(user, is_known, &hash, password.as_bytes()).unwrap())
        };
        for (user, is_known, password, is_right) in [
            ("alice", true, "secret", true),
            ("alice", true, "wrong", false),
            ("eve", false, "secret", false),
            ("", false, "", false),
        ] {
            assert_eq!(kept(user, is_known, password), None, "{user}");
            assert_eq!(admits(&users, user, password), is_right, "{user}");
            assert_eq!(kept(user, is_known, password), Some(is_right), "{user} was checked");
            assert_eq!(admits(&users, user, password), is_right, "{user} again");
        }
    }

    #[test]
    fn a_flood_of_wrong_passwords_does_not_push_out_the_right_one() {
        let results = Results::default();
        results.set([1; 32], true);
        for number in 0..1000u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            results.set(key, false);
        }
        assert_eq!(results.get(&[1; 32]), Some(true));
        assert_eq!(results.wrong.lock().unwrap().len(), KEPT);
    }
}
