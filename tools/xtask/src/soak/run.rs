//! One user's soak: two environments under load that live as long as it does, others that come and go, and what is done to them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::count::Memory;
use super::env::Env;
use super::fold::Fold;
use super::load::Load;
use super::nested::Nested;
use super::plan::{Act, Random, act};
use crate::shell::Result;

/// How many nested loads there are at a time.
const NESTED: usize = 2;
/// Between two looks at what all of it holds.
const SETTLE: Duration = Duration::from_secs(60);
/// What was done last, for who looks into a failure.
const LAST: usize = 12;

/// Environments that are killed whole.
const WHOLE: [&[&str]; 3] =
    [&["--net", "local"], &["--net", "local", "--auth", "root"], &["--net", "local", "--fs", "cow"]];

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) minutes: f64,
    pub(crate) acts: u64,
    pub(crate) operations: BTreeMap<&'static str, u64>,
    /// By what was done.
    pub(crate) done: BTreeMap<&'static str, u64>,
    /// Time without service, in ms.
    pub(crate) deaths: Vec<f64>,
    pub(crate) swaps: Vec<f64>,
    pub(crate) memory: Vec<(String, Memory)>,
}

impl Figures {
    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn operations(&mut self, load: &Load) {
        for (client, done) in load.operations() {
            *self.operations.entry(client).or_default() += done;
        }
    }
}

/// The middle, and how bad it gets.
fn spread(times: &[f64]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| sorted.get((sorted.len().saturating_sub(1) as f64 * part).round() as usize).copied();
    let [median, most, all, worst] = [0.5, 0.9, 0.99, 1.0].map(|part| at(part).unwrap_or(f64::NAN));
    format!("{median:.1} ms at the median, 90 % {most:.1}, 99 % {all:.1}, {worst:.1} at most (of {})", times.len())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |all: &BTreeMap<&str, u64>| {
            all.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "  {:.1} minutes, {} acts: {}", self.minutes, self.acts, list(&self.done))?;
        let all: u64 = self.operations.values().sum();
        writeln!(f, "  {all} operations of clients, none failed: {}", list(&self.operations))?;
        writeln!(f, "  without service at a death: {}", spread(&self.deaths))?;
        writeln!(f, "  without service at a swap: {}", spread(&self.swaps))?;
        self.memory.iter().try_for_each(|(name, memory)| writeln!(f, "  memory of {name}: {memory}"))
    }
}

/// All of it under way.
struct Soak<'a> {
    fold: &'a Fold,
    interposers: [String; 2],
    stay: Vec<Env<'a>>,
    nested: VecDeque<Nested<'a>>,
    figures: Figures,
    begin: Instant,
}

/// Runs a user's plan until `end`, or until it is told to stop. An error says what was seen, and after what.
pub(crate) fn run(fold: &Fold, seed: u64, length: Duration, stop: &AtomicBool) -> Result<Figures> {
    let example = |name: &str| fold.program(name).display().to_string();
    let mut soak = Soak {
        fold,
        interposers: [format!("{},ms=1+local", example("slow")), format!("{}+local", example("count"))],
        stay: vec![
            Env::start(fold, "web", &["--net", "local"], &["close", "keep", "each", "kept", "echo"])?,
            Env::start(fold, "bank", &["--net", "local"], &["bank", "desk", "echo"])?,
        ],
        nested: VecDeque::new(),
        figures: Figures::default(),
        begin: Instant::now(),
    };
    let mut last = VecDeque::new();
    soak.go(seed, length, stop, &mut last).map_err(|error| {
        let seen: String = soak.stay.iter().map(Env::described).collect();
        format!("{error}\n  after {last:#?}\n{seen}")
    })?;
    soak.end()
}

impl Soak<'_> {
    fn go(&mut self, seed: u64, length: Duration, stop: &AtomicBool, last: &mut VecDeque<String>) -> Result {
        self.stay.iter_mut().try_for_each(Env::watch)?;
        self.begin = Instant::now();
        let mut settle = self.begin + SETTLE / 6;
        while self.begin.elapsed() < length && !stop.load(Ordering::SeqCst) {
            let number = self.figures.acts;
            let mut random = Random::of(seed, self.fold.user.id.into(), number);
            std::thread::sleep(Duration::from_millis(random.below(120) as u64));
            let act = act(&mut random);
            last.push_back(format!("{:.3} s, act {number}: {act:?}", self.begin.elapsed().as_secs_f64()));
            if last.len() > LAST {
                last.pop_front();
            }
            self.act(act, &mut random)?;
            self.figures.acts += 1;
            self.look()?;
            if Instant::now() > settle {
                last.push_back("all back to the base line".into());
                self.settle()?;
                settle = Instant::now() + SETTLE;
            }
        }
        last.push_back("all back to the base line".into());
        self.settle()
    }

    fn look(&mut self) -> Result {
        for env in &mut self.stay {
            env.alive()?;
            env.load.look()?;
        }
        self.nested.iter_mut().try_for_each(Nested::look)
    }

    fn act(&mut self, act: Act, random: &mut Random) -> Result {
        let which = random.below(self.stay.len());
        let env = &mut self.stay[which];
        match act {
            Act::KillNet => {
                let away = env.kill_net(random)?;
                self.figures.deaths.extend(away);
                self.figures.count("deaths of net");
            }
            Act::KillAsked(interface) => {
                env.kill_asked(interface, random)?;
                self.figures.count(if interface == "auth" { "deaths of auth" } else { "deaths of proc" });
            }
            Act::Swap => {
                let [slow, count] = &self.interposers;
                let to = random.pick(&["local", "delay,ms=1+local", slow, count]).unwrap_or("local");
                let away = env.swap(to)?;
                self.figures.swaps.extend(away);
                self.figures.count("swaps");
            }
            Act::Nest(depth) if self.nested.len() < NESTED => {
                let mark = format!("nested-{}", self.figures.acts);
                self.nested.push_back(Nested::start(self.fold, env, mark, depth)?);
                self.figures.count("nested");
            }
            Act::EndNested => self.end_nested()?,
            Act::KillNested => {
                if let Some(nested) = self.nested.pop_front() {
                    self.figures.operations(&nested.load);
                    if nested.kill(random)? {
                        self.figures.count("nested ones killed");
                    }
                }
            }
            Act::KillWhole => {
                let (mark, options) = (format!("whole-{}", self.figures.acts), WHOLE[random.below(WHOLE.len())]);
                let env = Env::start(self.fold, &mark, options, &["echo", "each"])?;
                self.figures.operations(&env.load);
                env.kill_whole(random)?;
                self.figures.count("whole ones killed");
            }
            Act::Nest(_) | Act::Look => {
                env.look(random)?;
                self.figures.count("looks");
            }
        }
        Ok(())
    }

    fn end_nested(&mut self) -> Result {
        let Some(nested) = self.nested.pop_front() else { return Ok(()) };
        let load = nested.end()?;
        self.figures.operations(&load);
        Ok(())
    }

    /// Everything that comes and goes is gone; what stays is as it was at first.
    fn settle(&mut self) -> Result {
        while !self.nested.is_empty() {
            self.end_nested()?;
        }
        let minutes = self.begin.elapsed().as_secs_f64() / 60.0;
        // All of them at rest before any is counted: some counts are the host's.
        self.stay.iter_mut().try_for_each(|env| env.swap("local").map(drop))?;
        self.stay.iter_mut().try_for_each(|env| env.settle(minutes))?;
        let deaths = spread(&self.figures.deaths);
        let clients = self.stay.iter().flat_map(|env| env.load.operations());
        let clients: Vec<String> = clients.map(|(client, done)| format!("{client} {done}")).collect();
        let (user, acts) = (&self.fold.user.name, self.figures.acts);
        println!("{minutes:5.1} min as {user}: {acts} acts; deaths {deaths}; {}", clients.join(", "));
        Ok(())
    }

    fn end(mut self) -> Result<Figures> {
        for env in std::mem::take(&mut self.stay) {
            self.figures.memory.push((env.name.clone(), env.memory.clone()));
            let load = env.end()?;
            self.figures.operations(&load);
        }
        self.fold.nothing_left()?;
        self.figures.minutes = self.begin.elapsed().as_secs_f64() / 60.0;
        Ok(self.figures)
    }
}
