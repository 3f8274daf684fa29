//! How a user names a server: `kind`, `kind:argument`, `kind,key=value,…`, a path to a program of his own, and `a+b`, which
//! stacks interposer `a` on `b`. A `\` before `,`, `+` or `\` makes it part of a value: `cow,share=./c\+\+`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One server of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// A standard kind (`local`), or a path if it holds a `/`.
    pub kind: String,
    /// What stands behind the colon.
    pub argument: Option<String>,
    /// `key=value`, in the order given; a bare `key` has the value `true`.
    pub options: Vec<(String, String)>,
}

impl Layer {
    /// A standard kind without argument or options.
    pub fn plain(kind: &str) -> Layer {
        Layer { kind: kind.to_string(), argument: None, options: Vec::new() }
    }

    /// Whether a program of the user's serves it.
    pub fn is_program(&self) -> bool {
        self.kind.contains('/')
    }

    /// Refuses what this kind has no use for: an argument, or any option that is not in `known`.
    pub fn check(&self, argument: bool, known: &[&str]) -> Result<(), SpecError> {
        let bad = |why: String| Err(SpecError { spec: self.to_string(), why });
        self.check_argument(argument)?;
        if argument && self.argument.as_deref().unwrap_or_default().is_empty() {
            return bad(format!("`{0}` needs an argument: `{0}:…`", self.kind));
        }
        self.check_options(known, &[])
    }

    /// Refuses an argument, unless `may` have one.
    pub fn check_argument(&self, may: bool) -> Result<(), SpecError> {
        let bad = |why: String| Err(SpecError { spec: self.to_string(), why });
        if let Some(unused) = self.argument.as_ref().filter(|_| !may) {
            return bad(format!("`{}` takes no argument (`:{unused}`)", self.kind));
        }
        Ok(())
    }

    /// Refuses options that are neither in `once` nor in `often`, and those given twice that are not in `often`.
    pub fn check_options(&self, once: &[&str], often: &[&str]) -> Result<(), SpecError> {
        let bad = |why: String| Err(SpecError { spec: self.to_string(), why });
        for (n, (key, _)) in self.options.iter().enumerate() {
            if often.contains(&key.as_str()) {
                continue;
            }
            if !once.contains(&key.as_str()) {
                let known = [once, often].concat();
                return match known.as_slice() {
                    [] => bad(format!("`{}` has no options (`{key}`)", self.kind)),
                    _ => bad(format!("`{}` has no option `{key}`; it has {}", self.kind, known.join(", "))),
                };
            }
            if self.options[..n].iter().any(|(other, _)| other == key) {
                return bad(format!("option `{key}` is given twice"));
            }
        }
        Ok(())
    }

    /// The value of an option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.kind))?;
        if let Some(argument) = &self.argument {
            write!(f, ":{}", escaped(argument))?;
        }
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={}", escaped(value)))
    }
}

/// A stack of servers, the outermost first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spec(Vec<Layer>);

impl Spec {
    /// One server of a standard kind.
    pub fn plain(kind: &str) -> Spec {
        Spec(vec![Layer::plain(kind)])
    }

    /// Its servers, the outermost first. Never empty.
    pub fn layers(&self) -> &[Layer] {
        &self.0
    }

    /// The outermost server, and the stack that it stands on.
    pub fn split(&self) -> (&Layer, Option<Spec>) {
        let below = (self.0.len() > 1).then(|| Spec(self.0[1..].to_vec()));
        (&self.0[0], below)
    }

    /// The one layer of a kind that can't be stacked.
    pub fn single(&self) -> Result<&Layer, SpecError> {
        match self.0.as_slice() {
            [one] => Ok(one),
            _ => Err(self.error("there is no interposer for this interface yet, so `+` has no meaning here")),
        }
    }

    /// The same with the paths of programs made absolute, as seen from `directory`.
    pub fn from_directory(mut self, directory: &std::path::Path) -> Spec {
        for layer in self.0.iter_mut().filter(|layer| layer.is_program()) {
            layer.kind = directory.join(&layer.kind).to_string_lossy().into_owned();
        }
        self
    }

    /// The same with other values of options; what `change` says against one is an error about this spec.
    pub fn change_options(mut self, change: impl Fn(&str, &str) -> Result<String, String>) -> Result<Spec, SpecError> {
        let text = self.to_string();
        for (key, value) in self.0.iter_mut().flat_map(|layer| &mut layer.options) {
            let changed = change(key, value);
            *value = changed.map_err(|why| SpecError { spec: text.clone(), why: format!("{key}={value}: {why}") })?;
        }
        Ok(self)
    }

    /// An error about this spec.
    pub fn error(&self, why: impl Into<String>) -> SpecError {
        SpecError { spec: self.to_string(), why: why.into() }
    }

    /// `kind` is none of `kinds`.
    pub fn unknown(&self, interface: &str, kinds: &[&str]) -> SpecError {
        let own = if self.0.iter().any(Layer::is_program) {
            "a program of one's own is not possible here yet"
        } else {
            "no such kind"
        };
        let plain = kinds.iter().map(|kind| kind.split(':').next().unwrap_or(kind));
        let near = self.0.iter().find_map(|layer| similar(&layer.kind, plain.clone()));
        let own = near.map_or_else(|| own.to_string(), |kind| format!("{own} (did you mean `{kind}`?)"));
        self.error(format!("{own}; {interface} is one of {}", kinds.join(", ")))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, layer) in self.0.iter().enumerate() {
            write!(f, "{}{layer}", if i == 0 { "" } else { "+" })?;
        }
        Ok(())
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Spec, SpecError> {
        let bad = |why: &str| SpecError { spec: text.to_string(), why: why.to_string() };
        let layer = |text: &str| {
            let mut parts = split(text, ',').into_iter();
            let head = parts.next().unwrap_or("");
            let (kind, argument) = match head.split_once(':') {
                Some((kind, argument)) => (kind, Some(plain(argument))),
                None => (head, None),
            };
            if kind.is_empty() {
                return Err(bad("a kind is missing"));
            }
            let mut options = Vec::new();
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, "true"));
                if key.is_empty() {
                    return Err(bad("an option has no name"));
                }
                options.push((key.to_string(), plain(value)));
            }
            Ok(Layer { kind: plain(kind), argument, options })
        };
        split(text, '+').into_iter().map(layer).collect::<Result<_, _>>().map(Spec)
    }
}

/// The parts of `text` between separators that no `\` stands before.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut begin, mut quoted) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if c == separator && !quoted {
            parts.push(&text[begin..at]);
            begin = at + c.len_utf8();
        }
        quoted = c == '\\' && !quoted;
    }
    parts.push(&text[begin..]);
    parts
}

/// Without the `\` that make separators part of a value.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        out.extend(if c == '\\' { rest.next() } else { Some(c) });
    }
    out
}

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| ",+\\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

impl TryFrom<String> for Spec {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Spec, SpecError> {
        text.parse()
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> String {
        spec.to_string()
    }
}

/// The one of `names` that was meant by a word that is none of them, if it is but a slip away.
pub fn similar<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let rated = names.into_iter().map(|name| (strsim::damerau_levenshtein(word, name), name));
    // In a short word two slips make another word.
    let most = word.len() / 3;
    rated.filter(|(slips, _)| (1..=most.min(2)).contains(slips)).min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// A spec that can't be: which, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{spec}`: {why}")]
pub struct SpecError {
    /// As the user wrote it.
    pub spec: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_prints_as_it_was_read() {
        for text in ["share", "root:/srv/jessie", "delay,ms=5+local", "./mine", "lan:web,mtu=9000"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        assert_eq!("x,flag".parse::<Spec>().unwrap().to_string(), "x,flag=true");
        let spec: Spec = r"cow,share=./c\+\+,hide=a\,b\\c,hide=d".parse().unwrap();
        let values: Vec<_> = spec.single().unwrap().options.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["./c++", r"a,b\c", "d"]);
        assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
    }

    #[test]
    fn a_slip_is_told_from_another_word() {
        let kinds = ["share", "none", "local"];
        for (word, meant) in
            [("loca", "local"), ("lcoal", "local"), ("shaer", "share"), ("nne", "none"), ("locals", "local")]
        {
            assert_eq!(similar(word, kinds), Some(meant), "{word}");
        }
        for word in ["host", "no", "stack", "", "local", "lo"] {
            assert_eq!(similar(word, kinds), None, "{word}");
        }
        let error = "loca".parse::<Spec>().unwrap().unknown("net", &["share", "local:NAME"]).to_string();
        assert!(error.contains("did you mean `local`?") && error.contains("local:NAME"), "{error}");
    }

    #[test]
    fn a_bad_spec_says_what_is_wrong() {
        for (text, why) in [("", "kind"), ("a++b", "kind"), ("a,=1", "no name"), (":x", "kind")] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
        let twice: Spec = "a,x=1,x=2".parse().unwrap();
        assert!(twice.single().unwrap().check(false, &["x"]).unwrap_err().to_string().contains("twice"));
        assert!(twice.single().unwrap().check_options(&[], &["x"]).is_ok());
        let error = Layer::plain("none").check(true, &[]).unwrap_err().to_string();
        assert!(error.contains("needs an argument"), "{error}");
    }
}
