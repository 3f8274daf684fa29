//! How a user names a server: `kind`, `kind:argument`, `kind,key=value,…`, a path to a program of his own, and `a+b`, which
//! stacks interposer `a` on `b`.

use std::collections::BTreeMap;
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
    /// `key=value`; a bare `key` has the value `true`.
    pub options: BTreeMap<String, String>,
}

impl Layer {
    /// A standard kind without argument or options.
    pub fn plain(kind: &str) -> Layer {
        Layer { kind: kind.to_string(), argument: None, options: BTreeMap::new() }
    }

    /// Whether a program of the user's serves it.
    pub fn is_program(&self) -> bool {
        self.kind.contains('/')
    }

    /// Refuses what this kind has no use for: an argument, or any option that is not in `known`.
    pub fn check(&self, argument: bool, known: &[&str]) -> Result<(), SpecError> {
        let bad = |why: String| Err(SpecError { spec: self.to_string(), why });
        if let Some(unused) = self.argument.as_ref().filter(|_| !argument) {
            return bad(format!("`{}` takes no argument (`:{unused}`)", self.kind));
        }
        if argument && self.argument.as_deref().unwrap_or_default().is_empty() {
            return bad(format!("`{0}` needs an argument: `{0}:…`", self.kind));
        }
        match self.options.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) if known.is_empty() => bad(format!("`{}` has no options (`{key}`)", self.kind)),
            Some(key) => bad(format!("`{}` has no option `{key}`; it has {}", self.kind, known.join(", "))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(argument) = &self.argument {
            write!(f, ":{argument}")?;
        }
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
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

    /// The layers, the outermost first.
    pub fn layers(&self) -> &[Layer] {
        &self.0
    }

    /// The one layer of a kind that can't be stacked.
    pub fn single(&self) -> Result<&Layer, SpecError> {
        match self.0.as_slice() {
            [one] => Ok(one),
            _ => Err(self.error("there is no interposer for this interface yet, so `+` has no meaning here")),
        }
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
            let mut parts = text.split(',');
            let head = parts.next().unwrap_or("");
            let (kind, argument) = match head.split_once(':') {
                Some((kind, argument)) => (kind, Some(argument.to_string())),
                None => (head, None),
            };
            if kind.is_empty() {
                return Err(bad("a kind is missing"));
            }
            let mut options = BTreeMap::new();
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, "true"));
                if key.is_empty() {
                    return Err(bad("an option has no name"));
                }
                if options.insert(key.to_string(), value.to_string()).is_some() {
                    return Err(bad(&format!("option `{key}` is given twice")));
                }
            }
            Ok(Layer { kind: kind.to_string(), argument, options })
        };
        text.split('+').map(layer).collect::<Result<_, _>>().map(Spec)
    }
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
    }

    #[test]
    fn a_bad_spec_says_what_is_wrong() {
        for (text, why) in [("", "kind"), ("a++b", "kind"), ("a,=1", "no name"), ("a,x=1,x=2", "twice"), (":x", "kind")]
        {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
        let error = Layer::plain("none").check(true, &[]).unwrap_err().to_string();
        assert!(error.contains("needs an argument"), "{error}");
    }
}
