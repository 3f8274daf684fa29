//! Events as lines: aligned for people, JSON for programs.

use std::io::{self, BufWriter, Stdout, Write as _};

use hurdle_wire::tap::{Event, Kind};

use super::Line;
use crate::output;

/// How much of arguments and results people see; JSON has more.
const SHOWN: usize = 160;

/// Prints to standard output, in pieces as large as they come.
pub(super) struct Printer {
    begun_us: u64,
    json: bool,
    out: BufWriter<Stdout>,
}

impl Printer {
    pub(super) fn new(begun_us: u64, json: bool) -> Printer {
        Printer { begun_us, json, out: BufWriter::with_capacity(32 << 10, io::stdout()) }
    }

    /// The names of the columns.
    pub(super) fn head(&mut self) -> io::Result<()> {
        if !self.json {
            writeln!(self.out, "{}", columns("TIME", "TOOK", "SERVER", "WHO", "CALL"))?;
        }
        self.flush()
    }

    pub(super) fn print(&mut self, line: &Line) -> io::Result<()> {
        if self.json {
            serde_json::to_writer(&mut self.out, line)?;
            return writeln!(self.out);
        }
        if line.event.lost > 0 {
            writeln!(self.out, "{} lost: they came faster than they were read", line.event.lost)?;
        }
        writeln!(self.out, "{}", text(line, self.begun_us))
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn columns(time: &str, took: &str, server: &str, who: &str, call: &str) -> String {
    format!("{time:>10}  {took:>9}  {server:<16}  {who:<22}  {call}")
}

fn text(Line { server, stack, event }: &Line, begun_us: u64) -> String {
    let time = event.at_us.saturating_sub(begun_us);
    let time = format!("{}.{:06}", time / 1_000_000, time % 1_000_000);
    let took = event.took_us.map_or_else(|| "-".into(), output::micros);
    let server = match stack {
        true => format!("{server}/{} {}", event.layer, event.pid),
        false => format!("{server} {}", event.pid),
    };
    let line = columns(&time, &took, &clean(&server), &clean(&who(event)), &clean(&call(event)));
    line.trim_end().to_string()
}

/// `redis-cli 12` is process 12 inside; `hurdle (4130)` is one outside.
fn who(Event { who, .. }: &Event) -> String {
    match (who.inside, who.pid) {
        (0, 0) => "-".into(),
        (0, pid) => format!("{} ({pid})", who.name),
        (inside, _) => format!("{} {inside}", who.name),
    }
}

fn call(event: &Event) -> String {
    let (arguments, result) = (cut(&event.arguments), cut(&event.result));
    match (event.kind, event.failed) {
        (Kind::Trap, _) => format!("{}({arguments}) = {result}", event.call),
        (Kind::Call, false) => format!("{}.{}({arguments}) -> {result}", event.interface, event.call),
        (Kind::Call, true) => format!("{}.{}({arguments}) failed: {result}", event.interface, event.call),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// What a program chose must not forge a line or drive the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurdle_wire::tap::Who;

    fn trap() -> Line {
        let who = Who { pid: 4200, inside: 12, thread: 4200, uid: 1000, name: "redis-cli".into() };
        let event = Event {
            at_us: 5_250_000,
            pid: 4130,
            layer: "local".into(),
            kind: Kind::Trap,
            interface: "net".into(),
            call: "connect".into(),
            arguments: "3, 127.0.0.1:6379".into(),
            who,
            result: "0".into(),
            took_us: Some(31),
            ..Event::default()
        };
        Line { server: "net".into(), stack: false, event }
    }

    #[test]
    fn a_line_says_who_what_and_how_long() {
        let mut line = trap();
        assert_eq!(
            text(&line, 5_000_000),
            "  0.250000      31 µs  net 4130          redis-cli 12            connect(3, 127.0.0.1:6379) = 0"
        );
        line.stack = true;
        line.event.took_us = None;
        line.event.kind = Kind::Call;
        line.event.failed = true;
        let printed = text(&line, 0);
        assert!(printed.contains("  -  net/local 4130") && printed.ends_with("failed: 0"), "{printed}");
    }

    #[test]
    fn what_a_program_chose_drives_no_terminal() {
        let mut line = trap();
        line.event.who.name = "\x1b[2J\nforged".into();
        line.event.arguments = "\u{9b}31m".repeat(100);
        let printed = text(&line, 0);
        assert!(!printed.chars().any(char::is_control), "{printed:?}");
        assert!(printed.chars().count() < 300);
    }
}
