//! The host's accounts and groups from its name service: files, LDAP, SSSD. This program is static and has no name
//! service of its own, so it runs `getent`. If that is missing or does not answer, the files are read instead.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long an answer is reused.
const FRESH: Duration = Duration::from_secs(10);
/// How old an answer may be that stands in for a service that does not answer. The account may belong to another person by
/// then.
const OLDER_MAX: Duration = Duration::from_secs(3600);
/// How long the name service may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// The most concurrent queries about uids that have a machine, names and groups.
const QUERIES_MAX: usize = 6;
/// The most concurrent queries about uids that have no machine. One account may have thousands of them (subuid(5)).
const UNKNOWN_QUERIES_MAX: usize = 2;
/// The most cached answers about uids with a machine, names and groups; and about uids without a machine.
const ANSWERS_MAX: usize = 8192;
const UNKNOWN_ANSWERS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub name: String,
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its home folder.
    pub home: PathBuf,
}

/// Queries the host's name service.
#[derive(Debug)]
pub(crate) struct NameService {
    getent: PathBuf,
    known: QueryQueue,
    unknown: QueryQueue,
    /// How long an answer is reused.
    keep: Duration,
    /// How long it may stand in for a service that does not answer.
    older_max: Duration,
    /// How long a query may wait for its turn, and again for its answer.
    deadline: Duration,
}

/// Queries that wait for each other, and their cached answers. However many there are, they do not delay another
/// queue's queries or evict its answers.
#[derive(Debug)]
struct QueryQueue {
    permits: Semaphore,
    answers: Mutex<HashMap<Query, CachedAnswer>>,
    answers_max: usize,
}

/// An answer, or an older one that stands in for it.
#[derive(Clone, Debug)]
struct CachedAnswer {
    answer: Answer,
    /// When the query was made.
    asked: Instant,
    /// When the service or the files gave the answer.
    given: Instant,
}

impl CachedAnswer {
    /// An answer of the service or of the files.
    fn new(answer: Answer) -> Self {
        let now = Instant::now();
        Self { answer, asked: now, given: now }
    }
}

impl QueryQueue {
    fn new(queries_max: usize, answers_max: usize) -> Self {
        Self { permits: Semaphore::new(queries_max), answers: Mutex::default(), answers_max }
    }

    fn get(&self, query: &Query) -> Option<CachedAnswer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(query).cloned()
    }

    /// Caches an answer; evicts the oldest one if the cache is full.
    fn put(&self, query: Query, answer: CachedAnswer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= self.answers_max && !answers.contains_key(&query) {
            let oldest = answers.iter().min_by_key(|(_, answer)| answer.asked).map(|(query, _)| query.clone());
            oldest.and_then(|oldest| answers.remove(&oldest));
        }
        answers.insert(query, answer);
    }
}

/// A database of the name service, and a key in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Query {
    database: &'static str,
    key: String,
}

/// The line of one entry, if there is one. Failures are cached too: a service that does not answer gets each query only
/// once in a while. Callers that repeat a query then leave turns to the others.
type Answer = Result<Option<String>, Unanswered>;

/// Why the name service did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the host's name service does not answer: `getent {database} {key}`: {why}")]
pub(crate) struct Unanswered {
    database: &'static str,
    key: String,
    why: Arc<io::Error>,
}

impl Default for NameService {
    fn default() -> Self {
        Self::with_program("getent")
    }
}

impl NameService {
    /// A name service that runs another program instead of `getent`.
    pub(crate) fn with_program(getent: impl Into<PathBuf>) -> Self {
        Self {
            getent: getent.into(),
            known: QueryQueue::new(QUERIES_MAX, ANSWERS_MAX),
            unknown: QueryQueue::new(UNKNOWN_QUERIES_MAX, UNKNOWN_ANSWERS_MAX),
            keep: FRESH,
            older_max: OLDER_MAX,
            deadline: DEADLINE,
        }
    }

    /// The account with this uid.
    ///
    /// # Errors
    /// The name service does not answer, and the files do not have it.
    pub(crate) async fn by_uid(&self, uid: u32) -> Result<Option<Account>, Unanswered> {
        self.account_in(&self.known, uid).await
    }

    /// The same for an unknown uid: the query waits behind other queries for unknown uids, and does not delay the rest.
    ///
    /// # Errors
    /// The name service does not answer, and the files do not have it.
    pub(crate) async fn by_unknown_uid(&self, uid: u32) -> Result<Option<Account>, Unanswered> {
        let query = Query { database: "passwd", key: uid.to_string() };
        // An account was found before, so the uid is no longer unknown.
        if self.known.get(&query).is_some() {
            return self.by_uid(uid).await;
        }
        let account = self.account_in(&self.unknown, uid).await;
        if let (Ok(Some(_)), Some(answer)) = (&account, self.unknown.get(&query)) {
            self.known.put(query, answer);
        }
        account
    }

    /// Whether an account with this uid was found before.
    pub(crate) fn knows(&self, uid: u32) -> bool {
        let query = Query { database: "passwd", key: uid.to_string() };
        self.known.get(&query).is_some_and(|cached| matches!(cached.answer, Ok(Some(_))))
    }

    async fn account_in(&self, queue: &QueryQueue, uid: u32) -> Result<Option<Account>, Unanswered> {
        let line = self.ask_in(queue, "passwd", &uid.to_string()).await?;
        Ok(line.as_deref().and_then(parse_account).filter(|account| account.uid == uid))
    }

    /// The account with this name. A name that is not [plain](is_plain) is not looked up.
    ///
    /// # Errors
    /// The name service does not answer, and the files do not have it.
    pub(crate) async fn by_name(&self, name: &str) -> Result<Option<Account>, Unanswered> {
        if !is_plain(name) {
            return Ok(None);
        }
        let line = self.ask("passwd", name).await?;
        Ok(line.as_deref().and_then(parse_account).filter(|account| account.name == name))
    }

    /// Whether the account is in the group of this name.
    ///
    /// # Errors
    /// The name service does not answer, and the files do not know the group.
    pub(crate) async fn is_member(&self, account: &Account, group: &str) -> Result<bool, Unanswered> {
        let Some(line) = self.ask("group", group).await? else { return Ok(false) };
        let Some((_, gid, members)) = parse_group(&line) else { return Ok(false) };
        if account.gid == gid || members.contains(&account.name.as_str()) {
            return Ok(true);
        }
        // A name service may list an account's groups without listing a group's members.
        Ok(self.groups(account).await?.contains(&gid))
    }

    /// All groups of the account, its primary one first.
    ///
    /// # Errors
    /// The name service does not answer.
    pub(crate) async fn groups(&self, account: &Account) -> Result<Vec<u32>, Unanswered> {
        let mut groups = vec![account.gid];
        // Such a name would be parsed as an option.
        if !account.name.starts_with('-') {
            let line = self.ask("initgroups", &account.name).await?.unwrap_or_default();
            let others = line.split_whitespace().skip(1).filter_map(|gid| gid.parse::<u32>().ok());
            groups.extend(others.filter(|gid| *gid != account.gid));
        }
        Ok(groups)
    }

    async fn ask(&self, database: &'static str, key: &str) -> Answer {
        self.ask_in(&self.known, database, key).await
    }

    /// The line of one entry. A recent answer is reused.
    async fn ask_in(&self, queue: &QueryQueue, database: &'static str, key: &str) -> Answer {
        let query = Query { database, key: key.to_owned() };
        let fresh =
            || queue.get(&query).filter(|cached| cached.asked.elapsed() < self.keep).map(|cached| cached.answer);
        if let Some(answer) = fresh() {
            return answer;
        }
        let older = || queue.get(&query).filter(|cached| cached.given.elapsed() < self.older_max);
        let Ok(_permit) = timeout(self.deadline, queue.permits.acquire()).await else {
            return fallback_answer(&query, older(), ErrorKind::TimedOut.into()).answer;
        };
        if let Some(answer) = fresh() {
            return answer;
        }
        let cached = match run(&self.getent, database, key, self.deadline).await {
            Ok(line) => CachedAnswer::new(Ok(line)),
            Err(why) => fallback_answer(&query, older(), why),
        };
        queue.put(query, cached.clone());
        cached.answer
    }
}

/// Returns an older answer, or that of the files. If neither has the entry, this is an error unless `getent` is
/// missing.
fn fallback_answer(query: &Query, older: Option<CachedAnswer>, why: io::Error) -> CachedAnswer {
    if let Some(older) = older.filter(|older| matches!(older.answer, Ok(Some(_)))) {
        return CachedAnswer { asked: Instant::now(), ..older };
    }
    let line = AccountFiles::read().line(query);
    if line.is_none() && why.kind() != ErrorKind::NotFound {
        let Query { database, key } = query.clone();
        return CachedAnswer::new(Err(Unanswered { database, key, why: Arc::new(why) }));
    }
    CachedAnswer::new(Ok(line))
}

/// Runs `getent`; `None` if there is no such entry.
async fn run(getent: &Path, database: &str, key: &str, deadline: Duration) -> io::Result<Option<String>> {
    let mut command = Command::new(getent);
    command.args([database, key]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(deadline, command.output()).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)),
        // getent(1): the key was not found.
        Some(2) => Ok(None),
        _ => Err(io::Error::other(output.status.to_string())),
    }
}

/// `/etc/passwd` and `/etc/group`, as they were when they were read.
struct AccountFiles {
    passwd: String,
    group: String,
}

impl AccountFiles {
    /// A file that cannot be read counts as empty.
    fn read() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// The line that `getent` would print.
    fn line(&self, Query { database, key }: &Query) -> Option<String> {
        let is_account = |line: &str| {
            parse_account(line).is_some_and(|account| account.name == *key || account.uid.to_string() == *key)
        };
        match *database {
            "passwd" => self.passwd.lines().find(|line| is_account(line)).map(str::to_owned),
            "group" => {
                let is_group = |line: &&str| parse_group(line).is_some_and(|(name, ..)| name == key);
                self.group.lines().find(is_group).map(str::to_owned)
            }
            _ => {
                let gids: Vec<String> = self.listing(key).map(|gid| gid.to_string()).collect();
                Some(format!("{key} {}", gids.join(" ")))
            }
        }
    }

    /// The groups that list this name.
    fn listing(&self, name: &str) -> impl Iterator<Item = u32> {
        let groups = self.group.lines().filter_map(parse_group);
        groups.filter(move |(_, _, members)| members.contains(&name)).map(|(_, gid, _)| gid)
    }
}

/// A line of passwd(5).
fn parse_account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let (name, _, uid, gid, _, home) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some(Account { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
}

/// A line of group(5): name, gid and members.
fn parse_group(line: &str) -> Option<(&str, u32, Vec<&str>)> {
    let mut fields = line.split(':');
    let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some((name, gid.parse().ok()?, members.split(',').collect()))
}

/// A developer's name: the account's name, or the uid's digits if there is no account or its name is not plain.
pub(crate) fn display_name(uid: u32, account: Option<&Account>) -> String {
    account.map(|account| account.name.clone()).filter(|name| is_plain(name)).unwrap_or_else(|| uid.to_string())
}

/// Whether a name can be displayed and be part of a path. It begins with a letter, so that it never looks like a uid.
pub(crate) fn is_plain(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
}

#[cfg(test)]
pub(crate) mod tests;
