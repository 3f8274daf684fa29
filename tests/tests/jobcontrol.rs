//! bash at a terminal: Ctrl-C, Ctrl-Z, jobs, fg, bg, exit statuses, and what a closed window does.

use std::process::Command;

use hurdle_tests::leaks::{descendants, describe, in_foreground, processes_marked};
use hurdle_tests::pty::Terminal;
use hurdle_tests::{Hurdle, until};

/// Marks the end of a command on the terminal. Typed with a quote inside, so that the echo of what was typed differs.
const ASK: &str = "echo '<'status=$?'>'";

/// A shell natively, or in environments with these options, one in the other.
fn start(levels: Option<&[&[&str]]>) -> (Hurdle, Terminal) {
    let hurdle = Hurdle::new();
    let mut command = match levels {
        None => Command::new("/bin/bash"),
        Some([outer, inner @ ..]) => {
            let mut command = hurdle.command();
            command.arg("run").args(*outer).arg("--");
            for options in inner {
                command.arg(hurdle.binary()).arg("run").args(*options).arg("--");
            }
            command.arg("/bin/bash");
            command
        }
        Some([]) => unreachable!("at least one"),
    };
    let settings = hurdle.logs().join("bashrc");
    std::fs::write(&settings, "PS1='fold> '; unset HISTFILE\n").expect("own file");
    command.args(["--noprofile", "--noediting", "--rcfile"]).arg(settings).arg("-i").env("TERM", "dumb");
    let mut terminal = Terminal::start(&command);
    terminal.expect("fold> ");
    (hurdle, terminal)
}

fn status(terminal: &mut Terminal, expected: i32) {
    terminal.line(ASK);
    terminal.expect(&format!("<status={expected}>"));
    terminal.expect("fold> ");
}

/// Brings the job with this command line to the foreground. The shell shows it before it hands its terminal over: a key typed in
/// between is the shell's, natively too.
fn fg(terminal: &mut Terminal, command: &str) {
    let is_shell = |pid: &u32| describe(*pid).contains(": /bin/bash --noprofile ");
    let shell = [terminal.id()].into_iter().chain(descendants(terminal.id())).find(is_shell).expect("a shell");
    assert!(in_foreground(shell), "{}", terminal.screen());
    terminal.line("fg");
    terminal.expect(command);
    until("the shell hands its terminal over", || (!in_foreground(shell)).then_some(()));
}

fn session(levels: Option<&[&[&str]]>) {
    let (hurdle, mut terminal) = start(levels);

    // No complaint about a missing terminal or job control.
    assert!(!terminal.screen().contains("no job control"), "{}", terminal.screen());
    terminal.line("(exit 42)");
    terminal.expect("fold> ");
    status(&mut terminal, 42);

    // Ctrl-C ends the program in the foreground, and neither the shell nor the terminal.
    terminal.line("echo '<'ready'>'; sleep 1000");
    terminal.expect("<ready>");
    until("sleep runs", || running(&hurdle, &terminal, levels.is_some(), "sleep 1000"));
    terminal.keys("\x03");
    terminal.expect("fold> ");
    status(&mut terminal, 130);

    // Ctrl-Z stops it; it is listed, continued in the background, brought back and ended.
    terminal.line("echo '<'again'>'; sleep 2000");
    terminal.expect("<again>");
    until("sleep runs", || running(&hurdle, &terminal, levels.is_some(), "sleep 2000"));
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("fold> ");
    status(&mut terminal, 148);
    terminal.line("bg");
    terminal.expect("sleep 2000 &");
    terminal.expect("fold> ");
    terminal.line("jobs");
    terminal.expect("Running");
    terminal.expect("fold> ");
    fg(&mut terminal, "sleep 2000");
    terminal.keys("\x03");
    terminal.expect("fold> ");
    status(&mut terminal, 130);

    // A reader in the background is stopped by the terminal; in the foreground it reads.
    terminal.line("cat &");
    terminal.expect("fold> ");
    terminal.line("until jobs | grep Stopped; do :; done");
    terminal.expect("Stopped");
    terminal.expect("fold> ");
    terminal.line("fg");
    terminal.expect("cat\r\n");
    terminal.line("fleece");
    // Once as the terminal's echo, once by cat.
    terminal.expect("fleece\r\nfleece\r\n");
    terminal.keys("\x04");
    terminal.expect("fold> ");
    status(&mut terminal, 0);

    // A program that handles the interrupt itself.
    terminal.line("bash -c 'trap \"echo caught; exit 5\" INT; echo \"<\"trap\">\"; while :; do sleep 0.05; done'");
    terminal.expect("<trap>");
    terminal.keys("\x03");
    terminal.expect("caught");
    terminal.expect("fold> ");
    status(&mut terminal, 5);

    terminal.line("tty");
    terminal.expect("/dev/");
    terminal.line("exit 7");
    assert_eq!(terminal.join().code(), Some(7));
    hurdle.assert_nothing_left();
}

/// True once a process with this command line is below the terminal, or carries the environment's mark.
fn running(hurdle: &Hurdle, terminal: &Terminal, marked: bool, command: &str) -> Option<()> {
    let found = if marked {
        processes_marked(hurdle.mark())
    } else {
        descendants(terminal.id()).into_iter().map(describe).collect()
    };
    found.iter().any(|line| line.trim_end().ends_with(&format!(": {command}"))).then_some(())
}

#[test]
fn native() {
    session(None);
}

#[test]
fn share() {
    session(Some(&[&[]]));
}

#[test]
fn local() {
    session(Some(&[&["--net", "local"]]));
}

#[test]
fn nested() {
    session(Some(&[&["--net", "local"], &["--net", "local"]]));
}

/// A `hurdle run` in an environment's shell, the program of which is stopped and goes on, in the foreground and behind it.
#[test]
fn a_nested_one_is_a_job() {
    for inner in ["", "--net local"] {
        let (hurdle, mut terminal) = start(Some(&[&["--net", "local"]]));
        terminal
            .line(&format!("{} run {inner} -- sh -c 'echo \"<\"up\">\"; exec sleep 4000'", hurdle.binary().display()));
        terminal.expect("<up>");
        until("sleep runs", || running(&hurdle, &terminal, true, "sleep 4000"));
        terminal.keys("\x1a");
        terminal.expect("Stopped");
        terminal.expect("fold> ");
        status(&mut terminal, 147);
        terminal.line("bg");
        terminal.expect("sleep 4000' &");
        terminal.expect("fold> ");
        terminal.line("jobs");
        terminal.expect("Running");
        terminal.expect("fold> ");
        fg(&mut terminal, "sleep 4000'");
        terminal.keys("\x03");
        terminal.expect("fold> ");
        status(&mut terminal, 130);
        // The terminal is as it was: it echoes, and ends lines.
        terminal.line("exit 7");
        assert_eq!(terminal.join().code(), Some(7), "{inner}");
        hurdle.assert_nothing_left();
    }
}

#[test]
fn hangup_ends_the_environment() {
    let (hurdle, mut terminal) = start(Some(&[&["--net", "local"]]));
    terminal.line("sleep 3000 & echo '<'started'>'");
    terminal.expect("<started>");
    drop(terminal);
    hurdle.assert_nothing_left();
}
