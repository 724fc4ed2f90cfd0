//! What is said, wherever it is said: flag before environment before file before default.
//!
//! The file's values become arguments of the command line, where no flag and no variable says
//! otherwise: so a value has one parser, one default and one error, and a new flag is a new key.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, parser::ValueSource};

use super::{
    Cli,
    file::{self, FileError, Place},
    keys::{Key, Kind, keys, unknown},
};

/// Variables of the original Go proxy that say what a key says.
const GO_TWINS: [(&str, &[&str]); 1] =
    [("upstream", &["DNS_PROXY_UPSTREAM_SERVER", "DNS_PROXY_UPSTREAM_PORT"])];

/// Everything that was said.
#[derive(Debug)]
pub struct Given {
    /// The command line, completed.
    pub cli: Cli,
    /// Where each value comes from.
    pub origins: Origins,
}

/// Where values come from, by the names of their keys.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// This flag.
    Flag(String),
    /// This variable.
    Variable(String),
    /// The file.
    File(Place),
}

/// Why there is nothing to be done.
#[derive(Debug)]
pub enum Refused {
    /// The command line, or it asks for help.
    Usage(clap::Error),
    /// The file.
    File(FileError),
}

impl Given {
    /// Reads the command line, the environment and the file that they name.
    ///
    /// # Errors
    /// Something of that cannot be.
    pub fn read(argv: &[OsString]) -> Result<Self, Refused> {
        let matches = parse(argv)?;
        let Some((name, given)) = matches.subcommand() else {
            return finish(&matches, Origins::default());
        };
        let cli = Cli::command();
        let Some(command) = cli.find_subcommand(name) else {
            return finish(&matches, Origins::default());
        };
        let mut origins = Origins::of_arguments(command, given);
        let path = given.try_get_one::<PathBuf>("config").ok().flatten();
        let Some(path) = path else {
            return finish(&matches, origins);
        };
        let settings = Settings::read(path).map_err(Refused::File)?;
        let mut completed = argv.to_vec();
        for key in keys(command) {
            if let Some((at, texts)) = settings.values.get(&key.name())
                && matches!(origins.0.get(&key.name()), Some(Origin::Default))
            {
                // Right behind the command: what follows `--` is not ours.
                let argument = |text: &String| arguments(key, text);
                completed.splice(2..2, texts.iter().filter_map(argument));
                origins.0.insert(key.name(), Origin::File(at.clone()));
            }
        }
        finish(&parse(&completed)?, origins)
    }
}

fn parse(argv: &[OsString]) -> Result<ArgMatches, Refused> {
    Cli::command().try_get_matches_from(argv).map_err(Refused::Usage)
}

fn finish(matches: &ArgMatches, origins: Origins) -> Result<Given, Refused> {
    let cli = Cli::from_arg_matches(matches).map_err(Refused::Usage)?;
    Ok(Given { cli, origins })
}

/// What says the same on the command line.
fn arguments(key: Key<'_>, text: &str) -> Option<OsString> {
    match key.kind() {
        Kind::Switch => (text == "true").then(|| format!("--{}", key.long()).into()),
        Kind::Number | Kind::Text | Kind::List => Some(format!("--{}={text}", key.long()).into()),
    }
}

/// What the file and its drop-ins say together: of each key, the last one that has it.
#[derive(Default)]
struct Settings {
    values: BTreeMap<String, (Place, Vec<String>)>,
}

impl Settings {
    /// All keys of `run` may be there, whatever the command: one file does for all.
    fn read(path: &Path) -> Result<Self, FileError> {
        let cli = Cli::command();
        let known: BTreeMap<_, _> = cli
            .find_subcommand("run")
            .map(|run| keys(run).map(|key| (key.name(), key)).collect())
            .unwrap_or_default();
        let (mut settings, mut mistakes) = (Self::default(), Vec::new());
        for entry in file::read(path)?.into_iter().flatten() {
            let Some(key) = known.get(&entry.key) else {
                let problem = unknown(&entry.key, "of this file", known.keys().map(String::as_str));
                mistakes.push(entry.at.mistake(problem));
                continue;
            };
            match key.read(&entry.value) {
                Ok(texts) => {
                    settings.values.insert(entry.key, (entry.at, texts));
                }
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        if mistakes.is_empty() { Ok(settings) } else { Err(FileError::Mistakes(mistakes)) }
    }
}

impl Origins {
    fn of_arguments(command: &Command, given: &ArgMatches) -> Self {
        let origin = |key: Key<'_>| {
            let is_set = |variable: &&str| env::var_os(variable).is_some();
            let mut twins = GO_TWINS.iter().filter(|(name, _)| *name == key.name());
            let twin = twins.find_map(|(_, variables)| variables.iter().copied().find(is_set));
            match given.value_source(key.0.get_id().as_str()) {
                Some(ValueSource::CommandLine) => Origin::Flag(format!("--{}", key.long())),
                Some(ValueSource::EnvVariable) => {
                    let variable = key.0.get_env().unwrap_or_default();
                    Origin::Variable(variable.to_string_lossy().into_owned())
                }
                _ => twin.map_or(Origin::Default, |twin| Origin::Variable(twin.to_owned())),
            }
        };
        Self(keys(command).map(|key| (key.name(), origin(key))).collect())
    }

    /// Where the value of a key comes from.
    pub fn of(&self, key: &str) -> &Origin {
        self.0.get(key).unwrap_or(&Origin::Default)
    }

    /// The same of several keys, for a message about them; nothing if no file is involved.
    pub fn name(&self, keys: &[&str]) -> String {
        let was_said = |key: &&&str| !matches!(self.of(key), Origin::Default);
        let of = |key: &&str| format!("\n  {key}: {}", self.of(key));
        let is_from_file = |key: &&str| matches!(self.of(key), Origin::File(_));
        if keys.iter().any(is_from_file) {
            keys.iter().filter(was_said).map(of).collect()
        } else {
            String::new()
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag(flag) => f.write_str(flag),
            Self::Variable(variable) => f.write_str(variable),
            Self::File(place) => write!(f, "{place}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::{Command, RunArgs};

    /// What `run` is told by a file, a drop-in and flags; variables are the binary's tests' to set.
    fn run(file: &str, drop_in: &str, flags: &[&str]) -> (RunArgs, Origins) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("dns-proxy.toml");
        fs::write(&path, file).expect("writable");
        fs::create_dir(file::drop_in_dir(&path)).expect("writable");
        fs::write(file::drop_in_dir(&path).join("a.toml"), drop_in).expect("writable");
        let path = path.into_os_string();
        let argv = ["dns-proxy".into(), "run".into(), "--config".into(), path];
        let argv: Vec<_> = argv.into_iter().chain(flags.iter().map(OsString::from)).collect();
        let given = Given::read(&argv).expect("valid");
        let Command::Run(args) = given.cli.command else { unreachable!("that was `run`") };
        (*args, given.origins)
    }

    #[test]
    fn a_flag_wins_over_a_drop_in_which_wins_over_the_file() {
        let (file, drop_in) = ("workers = 1\ncache_size = 0\nlisten = ['[::1]:1']", "workers = 2");
        let (args, origins) = run(file, drop_in, &[]);
        assert_eq!((args.shared.workers, args.shared.cache_size), (Some(2), 0));
        assert!(origins.of("workers").to_string().ends_with("dns-proxy.toml.d/a.toml:1:1"));
        assert!(origins.of("listen").to_string().ends_with("dns-proxy.toml:3:1"));
        assert_eq!(origins.of("guard").to_string(), "default");
        let (args, origins) = run(file, drop_in, &["--workers", "3", "--listen", "[::1]:2"]);
        assert_eq!(args.shared.workers, Some(3));
        assert_eq!(args.listen, ["[::1]:2".parse().expect("an address")], "lists replace");
        assert_eq!(origins.of("workers").to_string(), "--workers");
    }

    #[test]
    fn every_kind_of_value_can_be_said() {
        let file = "
            listen = '127.0.0.1:53'
            upstream = ['1.1.1.1#cloudflare-dns.com', '9.9.9.9']
            no_default_routes = true
            strip_ecs = false
            cache_size = 1048576
            serve_stale = '2h'
        ";
        let (args, _) = run(file, "", &[]);
        let policy = args.shared.policy;
        assert_eq!((args.listen.len(), policy.upstream.len()), (1, 2));
        assert_eq!(policy.upstream[1].to_string(), "9.9.9.9:853", "in their order");
        assert!(policy.no_default_routes && !policy.strip_ecs);
        assert_eq!(args.shared.cache_size, 1 << 20);
    }
}
