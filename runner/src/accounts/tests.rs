use futures_util::future::join_all;

use super::*;
use garret_testing::program;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/zsh\n\
     1001:x:1002:1002::/home/odd:/bin/sh\nbroken line\nbob.b:x:1003:100::/home/bob:/bin/sh\n";
const GROUP: &str = "root:x:0:\nalice:x:1000:\ngarret:x:50:bob.b,alice\nusers:x:100:\ndocker:x:60:\n";

/// A name service without a cache that reads `passwd` and `initgroups` in this folder, and runs `extra` first.
pub(crate) fn name_service(folder: &Path, extra: &str) -> NameService {
    let script = format!(
        "#!/bin/sh\n{extra}\ncd {}\ncase $1 in\n\
         passwd) grep -E \"^$2:|^[^:]*:x:$2:\" passwd || exit 2 ;;\n\
         *) grep \"^$2[: ]\" $1 || exit 2 ;;\nesac\n",
        folder.display()
    );
    let program = folder.join("getent");
    program::write(&program, &script);
    for (file, text) in [("passwd", PASSWD), ("group", GROUP), ("initgroups", "alice 1000 27 60\n")] {
        fs::write(folder.join(file), text).unwrap();
    }
    NameService { keep: Duration::ZERO, ..NameService::with_program(program) }
}

/// The same, plus an account without a plain name for each of these uids.
pub(crate) fn name_service_with(folder: &Path, uids: &[u32]) -> NameService {
    let names = name_service(folder, "");
    let lines: String = uids.iter().map(|uid| format!("{uid}:x:{uid}:{uid}::/home/{uid}:/bin/sh\n")).collect();
    fs::write(folder.join("passwd"), format!("{PASSWD}{lines}")).unwrap();
    names
}

#[tokio::test]
async fn accounts_and_groups_are_those_of_the_name_service() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_service(dir.path(), "");
    let alice = names.by_uid(1000).await.unwrap().unwrap();
    assert_eq!((alice.name.as_str(), alice.gid, alice.home.to_str()), ("alice", 1000, Some("/home/alice")));
    assert_eq!(names.by_name("bob.b").await.unwrap().unwrap().uid, 1003);
    assert_eq!(names.by_uid(7).await.unwrap(), None);
    for not_asked in ["-x", "", "1001", "a b", "$(true)"] {
        assert_eq!(names.by_name(not_asked).await.unwrap(), None, "{not_asked}");
    }
    assert_eq!(names.groups(&alice).await.unwrap(), [1000, 27, 60]);
    // docker has no list of members: only the account's own groups show the membership.
    for (group, member) in [("garret", true), ("docker", true), ("users", false), ("nonexistent", false)] {
        assert_eq!(names.is_member(&alice, group).await.unwrap(), member, "{group}");
    }
}

#[tokio::test]
async fn an_answer_is_used_again_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = NameService { keep: FRESH, ..name_service(dir.path(), "") };
    assert!(names.by_uid(1000).await.unwrap().is_some());
    fs::write(dir.path().join("passwd"), "").unwrap();
    assert!(names.by_uid(1000).await.unwrap().is_some());
    names.keep = Duration::ZERO;
    assert!(names.by_uid(1000).await.unwrap().is_none());
}

#[tokio::test]
async fn a_silent_name_service_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let silent = name_service(dir.path(), "exec sleep 1000");
    let mut names = NameService { deadline: Duration::from_millis(100), keep: Duration::from_secs(1000), ..silent };
    // The files know root. A uid that is missing in them may still have an account.
    assert_eq!(names.by_uid(0).await.unwrap().unwrap().name, "root");
    let error = names.by_uid(4_000_000).await.unwrap_err().to_string();
    assert!(error.starts_with("the host's name service does not answer: `getent passwd 4000000`"), "{error}");
    // The same query is not repeated soon.
    names.getent = "/bin/false".into();
    assert_eq!(names.by_uid(4_000_000).await.unwrap_err().to_string(), error);
}

#[tokio::test]
async fn a_failing_name_service_gets_each_query_only_a_few_times() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_service(dir.path(), &format!("echo >>{}/asked; exit 1", dir.path().display()));
    let forever = Duration::from_secs(1000);
    let names = NameService { keep: forever, deadline: forever, ..names };
    let answers = join_all((0..5 * QUERIES_MAX).map(|_| names.by_uid(4_000_000))).await;
    assert!(answers.iter().all(Result::is_err));
    let asked = fs::read_to_string(dir.path().join("asked")).unwrap().lines().count();
    assert!((1..=QUERIES_MAX).contains(&asked), "asked {asked} times");
}

#[tokio::test]
async fn many_unknown_uids_delay_no_developer() {
    let dir = tempfile::tempdir().unwrap();
    let names = name_service(dir.path(), "sleep 0.1");
    let unknown = join_all((100_000..101_000).map(|uid| names.by_unknown_uid(uid)));
    let begun = Instant::now();
    // A thousand queries, two at a time, take 50 s.
    let alice = tokio::select! {
        biased;
        _ = unknown => panic!("all unknown uids were queried first"),
        alice = names.by_uid(1000) => alice,
    };
    assert_eq!(alice.unwrap().unwrap().name, "alice");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_older_answer_outlives_those_for_unknown_uids() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = name_service(dir.path(), "");
    assert!(names.by_uid(1000).await.unwrap().is_some());
    for uid in 0..2 * UNKNOWN_ANSWERS_MAX {
        names.unknown.put(Query { database: "passwd", key: uid.to_string() }, CachedAnswer::new(Ok(None)));
    }
    assert_eq!(names.unknown.answers.lock().unwrap().len(), UNKNOWN_ANSWERS_MAX);
    names.getent = "/bin/false".into();
    assert_eq!(names.by_uid(1000).await.unwrap().unwrap().name, "alice");
}

#[test]
fn a_full_cache_evicts_the_oldest_answer() {
    let queue = QueryQueue::new(1, 3);
    let query = |key: &str| Query { database: "passwd", key: key.into() };
    for key in ["a", "b", "c", "a", "d"] {
        queue.put(query(key), CachedAnswer::new(Ok(None)));
    }
    let kept: Vec<_> = ["a", "b", "c", "d"].into_iter().filter(|key| queue.get(&query(key)).is_some()).collect();
    assert_eq!(kept, ["a", "c", "d"]);
}

#[tokio::test]
async fn an_answer_that_is_too_old_does_not_stand_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = name_service(dir.path(), "[ -e ../down ] && exit 3; true");
    let down = dir.path().join("down");
    let script = fs::read_to_string(dir.path().join("getent")).unwrap();
    program::write(&dir.path().join("getent"), &script.replace("../down", down.to_str().unwrap()));
    assert!(!names.knows(1003));
    names.by_uid(1003).await.unwrap().unwrap();
    assert!(names.knows(1003));
    fs::write(&down, "").unwrap();
    assert_eq!(names.by_uid(1003).await.unwrap().unwrap().name, "bob.b");
    names.older_max = Duration::ZERO;
    names.by_uid(1003).await.unwrap_err();
    assert!(!names.knows(1003));
}

#[tokio::test]
async fn without_getent_the_files_are_all_there_is() {
    let names = NameService::with_program("/nonexistent/getent");
    assert_eq!(names.by_name("root").await.unwrap().unwrap().uid, 0);
    assert_eq!(names.by_uid(4_000_000).await.unwrap(), None);
}

#[test]
fn the_files_answer_as_getent_does() {
    let files = AccountFiles { passwd: PASSWD.into(), group: GROUP.into() };
    let line = |database, key: &str| files.line(&Query { database, key: key.into() });
    assert_eq!(line("passwd", "1003"), line("passwd", "bob.b"));
    assert_eq!(parse_account(&line("passwd", "1002").unwrap()).unwrap().name, "1001");
    assert_eq!(parse_group(&line("group", "garret").unwrap()).unwrap().1, 50);
    assert_eq!(line("initgroups", "bob.b").unwrap(), "bob.b 50");
    assert_eq!((line("passwd", "nobody-here"), line("group", "x")), (None, None));
}

#[test]
fn names_that_cannot_be_shown_are_not_used() {
    for name in ["", "..", "1001", "a/b", "-a", "a b", "ä", "EX\\alice", &"a".repeat(33)] {
        assert!(!is_plain(name), "{name}");
    }
    let account = |name: &str| Account { name: name.into(), uid: 7, gid: 7, home: "/home/a".into() };
    for (name, shown) in [("alice", "alice"), ("Alice", "Alice"), ("a.b@example", "a.b@example"), ("1001", "7")] {
        assert_eq!(display_name(7, Some(&account(name))), shown);
    }
    assert_eq!(display_name(7, None), "7");
}
