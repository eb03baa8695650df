//! Memory that is plugged into a running machine and unplugged again (virtio-mem).

use std::fs;
use std::io::Write;
use std::time::Duration;

use garret_api::vmm::{ExitReason, MachineInfo, MachineState, MemoryInfo, MemoryTarget};
use serde_json::{Value, json};

use crate::stage::{Machine, config};

/// A machine with 256 MiB at boot and 1 GiB of hotplug memory, of which it requests `requested_mib` at once.
fn pluggable(requested_mib: u32, command: &str) -> Value {
    let mut config = config(command);
    let cmdline = config["kernel"]["cmdline"].as_str().expect("text");
    config["kernel"]["cmdline"] = format!("memory_hotplug.online_policy=auto-movable {cmdline}").into();
    config["hotplug"] = json!({ "size_mib": 1024, "requested_mib": requested_mib });
    config
}

/// Shell: `total` prints the guest's memory in KiB.
const TOTAL: &str =
    "total() { while read name size unit; do [ $name = MemTotal: ] && echo $size; done < /proc/meminfo; }";

fn set(machine: &Machine, requested_mib: u32) -> MemoryInfo {
    machine.put("/v1/memory", &MemoryTarget { requested_mib }).expect("possible")
}

fn wait_plugged(machine: &mut Machine, what: &str, is_right: impl Fn(u32) -> bool) {
    machine.wait(what, |machine| is_right(machine.get::<MemoryInfo>("/v1/memory").plugged_mib));
}

/// The VMM's own memory, which includes the guest's, in MiB.
fn resident_mib(machine: &Machine) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel reports it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

#[test]
fn plugged_memory_is_used_and_comes_back() {
    // 70 files of 4 MiB need more memory than the machine has without plugged memory. All files are equal, so their
    // checksums are. The guest removes them when it has more memory than before.
    let command = format!(
        "{TOTAL}; mount -t tmpfs -o size=400m none /tmp; echo ready; \
         until [ $(total) -gt 700000 ]; do sleep 0.1; done; echo grown; \
         head -c 4194304 /dev/urandom > /tmp/0; for i in $(seq 1 69); do cat /tmp/0 > /tmp/$i; done; \
         echo $(sha256sum /tmp/* | cut -c 1-64 | sort -u | wc -l) checksum of $(ls /tmp | wc -l); \
         until [ $(total) -gt 820000 ]; do sleep 0.1; done; rm /tmp/*; echo freed; \
         until [ $(total) -lt 400000 ]; do sleep 0.1; done; echo shrunk; while :; do sleep 1; done"
    );
    let mut machine = Machine::start(pluggable(0, &command));
    machine.wait_for("ready", 1);
    machine.wait("the driver", |machine| machine.get::<MemoryInfo>("/v1/memory").driver);
    let expected = MemoryInfo { boot_mib: 256, size_mib: 1024, driver: true, ..MemoryInfo::default() };
    assert_eq!(machine.get::<MemoryInfo>("/v1/memory"), expected);

    assert_eq!(set(&machine, 512).requested_mib, 512);
    wait_plugged(&mut machine, "plugging", |plugged| plugged == 512);
    machine.wait_for("grown", 1);
    machine.wait_for("1 checksum of 70", 1);
    let full = resident_mib(&machine);
    assert!(full >= 280, "{full} MiB are resident");

    set(&machine, 640);
    wait_plugged(&mut machine, "plugging more", |plugged| plugged == 640);
    machine.wait_for("freed", 1);
    set(&machine, 0);
    wait_plugged(&mut machine, "unplugging", |plugged| plugged <= 64);
    machine.wait_for("shrunk", 1);
    let rest = resident_mib(&machine);
    assert!(rest + 256 <= full, "{rest} MiB are resident, {full} were");
    assert_eq!(machine.get::<MemoryInfo>("/v1/memory").refused, 0);
    machine.post("/v1/shutdown");
    assert_eq!(machine.end().words.reason, ExitReason::Asked);
}

#[test]
fn target_set_before_the_driver_or_while_paused_is_reached() {
    let mut machine = Machine::start(pluggable(4, "while :; do sleep 1; done"));
    machine.wait("the API", |machine| machine.path("api.sock").exists());
    set(&machine, 128);
    wait_plugged(&mut machine, "plugging what was asked at boot", |plugged| plugged == 128);
    machine.post("/v1/pause");
    assert_eq!(set(&machine, 256).plugged_mib, 128);
    machine.post("/v1/resume");
    wait_plugged(&mut machine, "plugging what was asked in the pause", |plugged| plugged == 256);
}

#[test]
fn without_requests_a_machine_resumes_with_all_its_memory() {
    let mut config = pluggable(4, "while :; do echo tick; sleep 0.1; done");
    config["lease_s"] = 5.into();
    let mut machine = Machine::start(config);
    machine.wait_for("tick", 1);
    for _ in 0..2 {
        set(&machine, 128);
        machine.post("/v1/pause");
        // Requests renew the lease. These take longer than one lease.
        for _ in 0..12 {
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(machine.get::<MachineInfo>("/v1/machine").state, MachineState::Paused);
        }
        let ticks = machine.console().matches("tick").count();
        // The console is read without a request.
        machine.wait_for("tick", ticks + 2);
        assert_eq!(machine.get::<MachineInfo>("/v1/machine").state, MachineState::Running);
        assert_eq!(machine.get::<MemoryInfo>("/v1/memory").requested_mib, 1024);
    }
}

#[test]
fn impossible_target_is_one_clear_line() {
    let machine = Machine::start(pluggable(4, "while :; do sleep 1; done"));
    let without = Machine::start(config("while :; do sleep 1; done"));
    let mut machines = [machine, without];
    for machine in &mut machines {
        machine.wait("the API", |machine| machine.path("api.sock").exists());
    }
    let [machine, without] = &machines;
    for (machine, body, line) in [
        (machine, json!({ "requested_mib": 3 }), "requested_mib: 3 is not a multiple of 2"),
        (machine, json!({ "requested_mib": 1026 }), "requested_mib: 1026 is not between 0 and 1024"),
        (machine, json!({ "requested_mib": -2 }), "invalid value: integer `-2`, expected u32"),
        (machine, json!({ "mib": 2 }), "missing field `requested_mib`"),
        (without, json!({ "requested_mib": 2 }), "this machine has no memory to plug"),
    ] {
        let refused = machine.put::<MemoryInfo>("/v1/memory", &body).unwrap_err();
        assert_eq!(refused.status(), Some(400), "{refused}");
        assert!(refused.to_string().contains(line), "`{line}` is not in `{refused}`");
    }
    assert_eq!(machine.get::<MemoryInfo>("/v1/memory").requested_mib, 4);
    assert_eq!(without.get::<MemoryInfo>("/v1/memory"), MemoryInfo { boot_mib: 256, ..MemoryInfo::default() });
}

/// Unplugged memory reads as ones to the guest's processor, and the machine continues.
#[test]
fn unplugged_memory_reads_as_ones_and_ends_no_machine() {
    let mut kernel = tempfile::NamedTempFile::new().expect("a file");
    kernel.write_all(&toucher()).expect("writable");
    let mut config = config("");
    config["kernel"] = json!({ "image": kernel.path() });
    config["root"].take();
    config["hotplug"] = json!({ "size_mib": 128, "requested_mib": 128 });
    let end = Machine::start(config).end();
    assert_eq!(end.words.reason, ExitReason::PowerOff, "something was there: {}", end.stderr);
    assert_eq!(end.stderr, "garret-vmm: the guest powered off\n", "a guest can fill the log");
}

/// A kernel (ELF with a PVH entry) that reads and writes the first bytes of the hotplug region, at 4 GiB. If these are
/// all ones before and after, it powers off. Otherwise it resets the machine.
fn toucher() -> Vec<u8> {
    const AT: u64 = 1 << 20;
    const CODE: [u8; 75] = [
        0xB8, 0x00, 0x10, 0x10, 0x00, //                                     mov eax, 0x101000
        0x0F, 0x22, 0xD8, //                                                 mov cr3, eax
        0x0F, 0x20, 0xE0, 0x83, 0xC8, 0x20, 0x0F, 0x22, 0xE0, //             set CR4.PAE
        0x0F, 0x20, 0xC0, 0x0D, 0x00, 0x00, 0x00, 0x80, 0x0F, 0x22, 0xC0, // set CR0.PG
        0x83, 0x3D, 0x00, 0x00, 0x20, 0x00, 0xFF, //                         cmp dword [0x200000], -1
        0x75, 0x1D, //                                                       jne reset
        0xC7, 0x05, 0x00, 0x00, 0x20, 0x00, 0x78, 0x56, 0x34, 0x12, //       mov dword [0x200000], 0x12345678
        0x83, 0x3D, 0x00, 0x00, 0x20, 0x00, 0xFF, //                         cmp dword [0x200000], -1
        0x75, 0x0A, //                                                       jne reset
        0x66, 0xBA, 0x00, 0x06, 0xB0, 0x34, 0xEE, //                         out 0x600, 0x34: sleep type S5
        0xF4, 0xEB, 0xFD, //                                           wait: hlt; jmp wait
        0x66, 0xBA, 0x02, 0x06, 0xB0, 0x01, 0xEE, //                  reset: out 0x602, 1
        0xEB, 0xF4, //                                                       jmp wait
    ];
    // Page tables (PAE): the first 2 MiB map to themselves, the next 2 MiB to 4 GiB.
    let mut image = vec![0; 0x3000];
    image[..CODE.len()].copy_from_slice(&CODE);
    for (at, entry) in [(0x1000, AT + 0x2001), (0x2000, 0x83), (0x2008, (4 << 30) + 0x83)] {
        image[at..at + 8].copy_from_slice(&u64::to_le_bytes(entry));
    }
    let len = image.len() as u64;
    let (header, program, note) = (64, 56, 20_u64);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let put16 = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let put32 = |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let put64 = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    put16(&mut elf, &[2, 62]); // an executable for x86-64
    put32(&mut elf, &[1]);
    put64(&mut elf, &[AT, header, 0]); // entry, program headers, no sections
    put32(&mut elf, &[0]);
    put16(&mut elf, &[header as u16, program as u16, 2, 0, 0, 0]);
    put32(&mut elf, &[1, 7]); // PT_LOAD: file offset, addresses, lengths, alignment
    put64(&mut elf, &[0x1000, AT, AT, len, len, 0x1000]);
    put32(&mut elf, &[4, 4]); // PT_NOTE
    put64(&mut elf, &[header + 2 * program, 0, 0, note, note, 4]);
    put32(&mut elf, &[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), AT as u32]); // XEN_ELFNOTE_PHYS32_ENTRY
    elf.resize(0x1000, 0);
    elf.extend(image);
    elf
}
