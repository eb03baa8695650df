//! `garret top`

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use garret_api::client::{Client, Error, Lines};
use garret_api::runner::{Event, EventKind, HostMemory, Machine, MachineMemory, Means, Top as Memory};
use hyper::Method;

use super::{output, terminal};

/// The interval between two screens.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many of the last squeezes are shown …
const RECENT: usize = 8;
/// … among this many last events.
const EVENTS: u64 = 256;

/// Show the memory of the host and of the running machines; an administrator sees all machines.
///
/// On a terminal, the display is updated each second until Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// Print once and exit.
    #[arg(long)]
    once: bool,
}

impl Top {
    pub(super) async fn run(self, client: &Client, json: bool) -> anyhow::Result<u8> {
        if json {
            output::print_json(&client.get::<Memory>("/v1/top").await?)?;
        } else if self.once || !io::stdout().is_terminal() {
            output::print(&render(&client.get("/v1/top").await?))?;
        } else {
            tokio::select! {
                drawn = draw(client) => drawn?,
                ended = tokio::signal::ctrl_c() => ended?,
            }
        }
        Ok(0)
    }
}

/// Draws until the future is dropped.
async fn draw(client: &Client) -> anyhow::Result<()> {
    let machines: Vec<Machine> = client.get("/v1/machines").await?;
    let last = machines.iter().map(|machine| machine.last_event).max().unwrap_or(0);
    let mut squeezes = Squeezes { after: last.saturating_sub(EVENTS), lines: VecDeque::new() };
    loop {
        let text = match picture(client, &mut squeezes).await {
            Ok(text) => text,
            Err(error @ Error::Problem { .. }) => return Err(error.into()),
            // The daemon may come back: machines continue while it restarts.
            Err(error) => format!("the daemon does not answer: {error}\n"),
        };
        let (rows, columns) = terminal::size().map_or((24, 80), |size| (size.rows.into(), size.columns.into()));
        output::print(&screen(&text, rows, columns))?;
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn picture(client: &Client, squeezes: &mut Squeezes) -> Result<String, Error> {
    let memory = client.get("/v1/top").await?;
    squeezes.read(client).await?;
    Ok(render(&memory) + &squeezes.render())
}

/// The text on a cleared screen, cut to fit; the last line stays free for the prompt.
fn screen(text: &str, rows: usize, columns: usize) -> String {
    let lines = text.lines().take(rows.saturating_sub(1));
    let cut = lines.map(|line| line.chars().take(columns).collect::<String>() + "\x1b[K\r\n");
    format!("\x1b[H{}\x1b[J", cut.collect::<String>())
}

fn render(memory: &Memory) -> String {
    let head = head(&memory.host, memory.machines.len());
    if memory.machines.is_empty() {
        return format!("{head}\nno machine of yours runs\n");
    }
    let names =
        ["MACHINE", "PROMISED", "GUARANTEED", "LIMIT", "TARGET", "RESIDENT", "SWAPPED", "WORKING", "PRESSURE", "STATE"];
    let mut rows = vec![names.map(String::from).to_vec()];
    rows.extend(memory.machines.iter().map(row));
    format!("{head}\n{}", output::table(&rows))
}

fn head(host: &HostMemory, machines: usize) -> String {
    let pressure = match host.pressure_some {
        Some(_) => format!("{} some, {} full", percent(host.pressure_some), percent(host.pressure_full)),
        None => "not reported by this kernel".into(),
    };
    format!(
        "host      {}, {} available; swap {}, {} free; pressure {pressure}\n\
         machines  {machines} shown; promised {} (overcommit {:.1}), guaranteed {} of {}, resident {}\n",
        size(host.total),
        size(host.available),
        size(host.swap_total),
        size(host.swap_free),
        size(host.promised),
        host.overcommit,
        size(host.guaranteed),
        size(host.capacity),
        size(host.resident),
    )
}

fn row(machine: &MachineMemory) -> Vec<String> {
    vec![
        machine.developer.clone(),
        size(machine.promised),
        size(machine.guaranteed),
        size(machine.limit),
        size(machine.target),
        size(machine.resident),
        size(machine.swapped),
        size(machine.working_set),
        percent(machine.pressure_some),
        state(machine.squeezed).into(),
    ]
}

fn state(squeezed: Option<Means>) -> &'static str {
    match squeezed {
        None | Some(Means::Released) => "free",
        Some(Means::Guest) => "squeezed",
        Some(Means::Swap) => "swapped out",
        Some(Means::Paused) => "paused",
    }
}

fn percent(percent: Option<f64>) -> String {
    percent.map_or("-".into(), |percent| format!("{percent:.1} %"))
}

/// Whole MiB; from 10 GiB on, GiB with one decimal.
fn size(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib < 10 << 10 { format!("{mib} MiB") } else { format!("{:.1} GiB", mib as f64 / 1024.0) }
}

/// The last squeezes that the caller may see.
#[derive(Default)]
struct Squeezes {
    after: u64,
    lines: VecDeque<String>,
}

impl Squeezes {
    async fn read(&mut self, client: &Client) -> Result<(), Error> {
        let path = format!("/v1/events?after={}", self.after);
        let mut events: Lines<Event> = client.lines::<Event, ()>(Method::GET, &path, None).await?;
        while let Some(event) = events.next().await? {
            self.note(&event);
        }
        Ok(())
    }

    fn note(&mut self, event: &Event) {
        self.after = event.id;
        if let EventKind::Squeeze { means, bytes, reason } = &event.what {
            self.lines.push_front(format!(
                "{}: {}, {}: {reason}",
                event.developer,
                output::wire_name(means),
                size(*bytes)
            ));
            self.lines.truncate(RECENT);
        }
    }

    /// The newest first.
    fn render(&self) -> String {
        let lines: String = self.lines.iter().map(|line| format!("{line}\n")).collect();
        if lines.is_empty() { lines } else { format!("\n{lines}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory() -> Memory {
        let machine = MachineMemory {
            developer: "alice".into(),
            promised: 16 * GIB,
            guaranteed: 2 * GIB,
            weight: 100,
            limit: 4 * GIB,
            target: 3 * GIB,
            resident: 2 * GIB,
            swapped: GIB / 2,
            working_set: GIB,
            pressure_some: Some(12.34),
            squeezed: Some(Means::Guest),
            oom_kills: 0,
        };
        let silent = MachineMemory { developer: "bob".into(), pressure_some: None, squeezed: None, ..machine.clone() };
        let host = HostMemory {
            total: 8 * GIB,
            available: 3 * GIB,
            swap_total: 4 * GIB,
            swap_free: 2 * GIB,
            capacity: 7 * GIB,
            promised: 32 * GIB,
            guaranteed: 4 * GIB,
            resident: 4 * GIB,
            overcommit: 4.0,
            pressure_some: Some(1.0),
            pressure_full: Some(0.0),
        };
        Memory { host, machines: vec![machine, silent] }
    }

    #[test]
    fn a_picture_has_the_host_and_each_machine() {
        assert_eq!(
            render(&memory()),
            "host      8192 MiB, 3072 MiB available; swap 4096 MiB, 2048 MiB free; pressure 1.0 % some, 0.0 % full\n\
             machines  2 shown; promised 32.0 GiB (overcommit 4.0), guaranteed 4096 MiB of 7168 MiB, resident 4096 MiB\n\
             \n\
             MACHINE  PROMISED  GUARANTEED  LIMIT     TARGET    RESIDENT  SWAPPED  WORKING   PRESSURE  STATE\n\
             alice    16.0 GiB  2048 MiB    4096 MiB  3072 MiB  2048 MiB  512 MiB  1024 MiB  12.3 %    squeezed\n\
             bob      16.0 GiB  2048 MiB    4096 MiB  3072 MiB  2048 MiB  512 MiB  1024 MiB  -         free\n"
        );
    }

    #[test]
    fn a_missing_psi_and_a_missing_machine_are_named() {
        let host = HostMemory { pressure_some: None, ..memory().host };
        let text = render(&Memory { host, machines: Vec::new() });
        assert!(
            text.contains("pressure not reported by this kernel") && text.ends_with("\nno machine of yours runs\n"),
            "{text}"
        );
    }

    #[test]
    fn a_picture_fits_the_screen() {
        assert_eq!(screen("one\ntwoo\nthree\n", 3, 3), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\n\x1b[J");
        assert_eq!(screen("", 0, 0), "\x1b[H\x1b[J");
    }

    #[test]
    fn the_newest_squeezes_are_shown_first_and_no_others() {
        let mut squeezes = Squeezes::default();
        assert_eq!(squeezes.render(), "");
        for id in 1..=20 {
            let what = EventKind::Squeeze { means: Means::Swap, bytes: id << 20, reason: "the host is short".into() };
            squeezes.note(&Event {
                id,
                at_ms: 0,
                machine: "m1".parse().unwrap(),
                developer: "alice".into(),
                environment: None,
                what,
            });
        }
        let text = squeezes.render();
        assert!(text.starts_with("\nalice: swap, 20 MiB: the host is short\nalice: swap, 19 MiB"), "{text}");
        assert_eq!((text.lines().count(), squeezes.after), (RECENT + 1, 20));
    }
}
