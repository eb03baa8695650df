//! Processes and their children.

/// All processes below `pid`.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        for children in children {
            let children = children.split_whitespace().filter_map(|child| child.parse().ok());
            let new: Vec<i32> = children.filter(|child| !found.contains(child)).collect();
            found.extend(&new);
            parents.extend(new);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_and_their_children_are_found() {
        let mut shell = std::process::Command::new("sh");
        let mut shell = shell.args(["-c", "sh -c 'sleep 1000; true'; true"]).spawn().unwrap();
        let pid = shell.id() as i32;
        while descendants(pid).len() < 2 {
            std::thread::yield_now();
        }
        for pid in descendants(pid).into_iter().rev().filter_map(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        shell.wait().unwrap();
        assert!(descendants(pid).is_empty());
    }
}
