//! The filter of each thread role: a forbidden call ends the process, and its name is reported.

use std::process::Command;

const ROLES: [&str; 10] = ["main", "signals", "api", "vcpu", "block", "net", "fs", "vsock", "mem", "quiet"];

/// The longest permitted list of a role. To allow a longer list, change this number.
const LIST_MAX: usize = 64;

fn forbidden_call_in(role: &str) {
    let run = Command::new(env!("CARGO_BIN_EXE_garret-vmm")).args(["seccomp-test", role]).output().unwrap();
    let (out, err) = (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap());
    assert_eq!(run.status.code(), Some(1), "{out}{err}");
    assert_eq!(err, format!("garret-vmm: thread role {role}: forbidden system call getppid (110)\n"));
    let count = out.strip_prefix(&format!("{role}: ")).and_then(|rest| rest.strip_suffix(" calls permitted\n"));
    let count: usize = count.unwrap_or_else(|| panic!("{out}")).parse().unwrap();
    print!("{out}");
    assert!(count <= LIST_MAX, "the list of {role} has grown to {count} calls");
}

macro_rules! roles {
    ($($role:ident)*) => {
        $(
            #[test]
            fn $role() {
                forbidden_call_in(stringify!($role));
            }
        )*

        #[test]
        fn every_role_has_its_test() {
            assert_eq!(ROLES, [$(stringify!($role)),*]);
            let help = Command::new(env!("CARGO_BIN_EXE_garret-vmm")).args(["seccomp-test", "?"]).output().unwrap();
            let help = String::from_utf8(help.stderr).unwrap();
            assert!(help.contains(&format!("[possible values: {}]", ROLES.join(", "))), "{help}");
        }
    };
}

roles!(main signals api vcpu block net fs vsock mem quiet);
