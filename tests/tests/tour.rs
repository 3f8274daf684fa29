//! Every command of the README's tour is run, and prints what the README says.
//!
//! The tour is the README's blocks marked `console`. In a block, a line that begins with `$ ` is a command, one that begins
//! with `> ` continues it, and the other lines are what it prints, where `…` stands for anything. Each block is run by one
//! bash, in an empty directory, with `hurdle` in its PATH, and has to end what it starts.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Hurdle, finish, skip, source};

/// How long a block may take.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The blocks of the tour, each with the line where it begins.
fn blocks() -> Vec<(usize, Vec<Step>)> {
    let mut blocks = Vec::new();
    let readme = source::read("README.md");
    let mut lines = readme.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "```console" {
            continue;
        }
        let mut steps: Vec<Step> = Vec::new();
        for (_, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { command: command.to_owned(), expected: Vec::new() });
                continue;
            }
            let step = steps.last_mut().unwrap_or_else(|| panic!("README.md, block at {number}: no command first"));
            match line.strip_prefix("> ") {
                Some(more) if step.expected.is_empty() => step.command = format!("{}\n{more}", step.command),
                _ => step.expected.push(line.trim_end().to_owned()),
            }
        }
        blocks.push((number + 1, steps));
    }
    blocks
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('…') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
}

#[test]
fn every_command_prints_what_the_readme_says() {
    let blocks = blocks();
    assert!(blocks.iter().map(|(_, steps)| steps.len()).sum::<usize>() >= 5, "the README has a tour");
    for (line, steps) in blocks {
        run(line, &steps);
    }
}

fn run(line: usize, steps: &[Step]) {
    let hurdle = Hurdle::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let programs = directory.path().join("bin");
    let work = directory.path().join("work");
    std::fs::create_dir(&programs).and_then(|()| std::fs::create_dir(&work)).expect("own directory");
    std::os::unix::fs::symlink(hurdle.binary(), programs.join("hurdle")).expect("own directory");

    let end = "end-of-a-step-of-the-tour";
    let mut script = String::from("exec 2>&1\n");
    for step in steps {
        writeln!(script, "{}\nprintf '\\n%s\\n' {end}", step.command).expect("a string takes all");
    }
    let file = directory.path().join("script");
    std::fs::write(&file, script).expect("own file");

    let mut bash = Command::new("/bin/bash");
    let variables = hurdle.command();
    bash.envs(variables.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bash.env("PATH", format!("{}:{}", programs.display(), skip::PATH)).env("HOME", &work).env("SHELL", "/bin/bash");
    let done = finish(bash.arg(file).current_dir(&work), LIMIT);

    let separator = format!("\n{end}\n");
    let mut printed = done.stdout.split(&separator);
    for Step { command, expected } in steps {
        let printed =
            printed.next().unwrap_or_else(|| panic!("README.md, block at {line}: `{command}` did not end: {done}"));
        let clean: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let (printed, expected) = (clean.join("\n"), expected.join("\n"));
        assert!(
            matches(expected.trim_end(), printed.trim_end()),
            "README.md, block at line {line}: `{command}`\n--- says\n{expected}\n--- prints\n{printed}\n"
        );
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_pattern_stands_for_what_it_should() {
    assert!(matches("a…c", "abc") && matches("…", "") && matches("a…", "a\nb") && matches("a", "a"));
    assert!(!matches("a…c", "abd") && !matches("a", "ab") && !matches("", "a"));
}
