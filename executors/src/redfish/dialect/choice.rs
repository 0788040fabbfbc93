//! Which dialect is spoken to whom.

use std::fmt;

use super::{Dialect, Speaker};

/// Dialects that come with Firmesh.
const BUILT_IN: [(&str, &str); 6] = [
    ("dell", include_str!("../../../dialects/dell.toml")),
    ("generic", include_str!("../../../dialects/generic.toml")),
    ("hpe", include_str!("../../../dialects/hpe.toml")),
    ("lenovo", include_str!("../../../dialects/lenovo.toml")),
    ("openbmc", include_str!("../../../dialects/openbmc.toml")),
    ("supermicro", include_str!("../../../dialects/supermicro.toml")),
];
/// The dialect of whoever has none of their own.
const FALLBACK: &str = "generic";

/// The dialects a device's BMC may speak, an operator's own first.
#[derive(Clone)]
pub struct Dialects {
    /// What an operator has written comes before what comes along.
    own: usize,
    all: Vec<Dialect>,
    /// The one that is spoken whatever the BMC says of itself.
    chosen: Option<String>,
}

impl fmt::Debug for Dialects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.all.iter().map(Dialect::name);
        f.debug_list().entries(names).finish()
    }
}

impl Dialects {
    /// Those that come with Firmesh, but for the ones that an operator's own files, by name and contents, take the place of.
    ///
    /// # Errors
    /// What is wrong, and in which file.
    pub(crate) fn new(files: &[(String, String)], chosen: Option<String>) -> Result<Self, String> {
        let mut all: Vec<Dialect> = Vec::new();
        for (file, text) in files {
            let dialect = Dialect::parse(text).map_err(|problem| format!("{file} {problem}"))?;
            if all.iter().any(|known| known.name == dialect.name) {
                return Err(format!(
                    "{file} has the name {:?}, and so has another file",
                    dialect.name
                ));
            }
            all.push(dialect);
        }
        let own = all.len();
        for (name, text) in BUILT_IN {
            if !all.iter().any(|known| known.name == name) {
                all.push(Dialect::parse(text).map_err(|problem| format!("{name} {problem}"))?);
            }
        }
        let dialects = Self { own, all, chosen };
        match &dialects.chosen {
            Some(name) if dialects.named(name).is_none() => {
                let known: Vec<_> = dialects.all.iter().map(|dialect| dialect.name.as_str()).collect();
                Err(format!("{name:?} is no dialect: there are {}", known.join(", ")))
            }
            _ => Ok(dialects),
        }
    }

    fn named(&self, name: &str) -> Option<&Dialect> {
        self.all.iter().find(|dialect| dialect.name == name)
    }

    /// Why a speaker is spoken to in this dialect.
    pub(in crate::redfish) fn why(&self, speaker: &Speaker) -> String {
        if self.chosen.is_some() {
            return "`dialect` in the configuration names it".to_owned();
        }
        let dialect = self.of(speaker);
        match dialect.asks() {
            asked if asked.is_empty() => "no dialect has more to say of this BMC".to_owned(),
            asked => format!("the BMC is one of those with {asked}"),
        }
    }

    /// The dialect that was chosen, else the one that asks for the most and gets it, an operator's own first.
    pub(in crate::redfish) fn of(&self, speaker: &Speaker) -> &Dialect {
        let chosen = self.chosen.as_ref().and_then(|name| self.named(name));
        let best = || {
            let suiting = self.all.iter().enumerate();
            let suiting = suiting.filter_map(|(at, dialect)| Some((dialect.suits(speaker)?, at < self.own, at)));
            // Of equals the first.
            let best = suiting.max_by_key(|&(asked, is_own, at)| (asked, is_own, usize::MAX - at))?;
            self.all.get(best.2)
        };
        let fallback = || self.named(FALLBACK);
        chosen.or_else(best).or_else(fallback).unwrap_or_else(|| &self.all[0])
    }
}

#[cfg(test)]
mod tests;
