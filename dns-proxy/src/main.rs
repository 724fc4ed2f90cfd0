//! `dns-proxy`: command line in, exit code out.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, error::ErrorKind};
use dns_proxy::{
    app, audit,
    cli::{
        AuditArgs, Cli, Command, RunArgs, SharedArgs, StatusArgs, WatchArgs,
        layers::{Given, Origins, Refused},
    },
    config::{Config, ConfigError},
    control_socket::{Request, client},
    exec, health,
    observe::{Line, filter::Filter},
    status::{Status, text},
    top,
};
use tracing::{Level, error};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let argv: Vec<_> = env::args_os().collect();
    let Given { cli, origins } = Given::read(&argv).unwrap_or_else(|refused| refuse(refused));
    match cli.command {
        Command::Run(args) => run(*args, &origins),
        Command::Exec(args) => {
            // Its output is the command's; only trouble is worth a line in it.
            start_log(&args.shared, Level::WARN);
            let config = Config::exec(args.shared);
            let config = config.unwrap_or_else(|error| usage_error(&error, &origins));
            finish(block_on(exec::exec(config, args.command)).map(ExitCode::from))
        }
        Command::Status(args) => {
            log_to_stderr(Level::WARN);
            finish(status(&args).map(|()| ExitCode::SUCCESS))
        }
        Command::Watch(args) => {
            log_to_stderr(Level::WARN);
            finish(watch(args).map(|()| ExitCode::SUCCESS))
        }
        Command::Top(args) => {
            log_to_stderr(Level::WARN);
            finish(top::top(&args.control).map(|()| ExitCode::SUCCESS))
        }
        Command::Audit(args) => {
            log_to_stderr(Level::WARN);
            finish(audit(&args))
        }
        Command::Health { admin } => {
            log_to_stderr(Level::WARN);
            finish(health::ask(admin).map(|()| ExitCode::SUCCESS).map_err(Into::into))
        }
        Command::Man { dir } => {
            log_to_stderr(Level::WARN);
            let written = clap_mangen::generate_to(Cli::command(), &dir);
            let failed = || format!("cannot write manual pages to {}", dir.display());
            finish(written.map(|()| ExitCode::SUCCESS).with_context(failed))
        }
        Command::Completion { shell } => {
            log_to_stderr(Level::WARN);
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dns-proxy", &mut script);
            match io::stdout().write_all(&script).and_then(|()| io::stdout().flush()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    error!("cannot write the script: {error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn run(args: RunArgs, origins: &Origins) -> ExitCode {
    start_log(&args.shared, Level::INFO);
    let config = Config::run(args).unwrap_or_else(|error| usage_error(&error, origins));
    finish(block_on(app::run(config)).map(|()| ExitCode::SUCCESS))
}

fn status(args: &StatusArgs) -> Result<()> {
    let status: Status = client::ask(&args.control.control, &Request::Status {})?.only()?;
    let page = if args.control.json {
        serde_json::to_string_pretty(&status)? + "\n"
    } else {
        text::page(&status)
    };
    write(&page).map(drop)
}

/// Whether all is clean, as an exit code.
fn audit(args: &AuditArgs) -> Result<ExitCode> {
    let audit = audit::audit(&args.control.control, args.length)?;
    let page = if args.control.json {
        serde_json::to_string_pretty(&audit)? + "\n"
    } else {
        audit::page(&audit)
    };
    write(&page)?;
    Ok(if audit.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Until the daemon ends, or the reader of our output.
fn watch(args: WatchArgs) -> Result<()> {
    let WatchArgs { control, container, name, rcode, qtype, slow, plaintext } = args;
    let filter = Filter { container, name, rcode, qtype, slow, plaintext };
    let mut answer = client::ask(&control.control, &Request::Watch { filter })?;
    answer.wait_for_good()?;
    while let Some(line) = answer.line::<Line>()? {
        let text = match (&line, control.json) {
            (line, true) => serde_json::to_string(line)?,
            (Line::Seen(seen), false) => seen.to_string(),
            (Line::Dropped { dropped }, false) => {
                format!("... {} queries not shown: too many to keep up", text::number(*dropped))
            }
        };
        if !write(&(text + "\n"))? {
            return Ok(());
        }
    }
    bail!("the daemon has ended")
}

/// To standard output, whose reader may have seen enough; whether there is one.
fn write(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write the result"),
    }
}

/// The control plane's runtime; workers have their own.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn finish(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// Ends with exit code 2, in clap's own form.
fn usage_error(error: &ConfigError, origins: &Origins) -> ! {
    let origins = origins.name(error.keys());
    Cli::command().error(ErrorKind::ValueValidation, format!("{error}{origins}")).exit()
}

/// The same, or with what was asked for: help, or the version.
fn refuse(refused: Refused) -> ! {
    match refused {
        Refused::Usage(error) => error.exit(),
        Refused::File(error) => {
            clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n")).exit()
        }
    }
}

fn start_log(args: &SharedArgs, default: Level) {
    log_to_stderr(args.log.unwrap_or(default));
}

/// Logs go to standard error: standard output belongs to whoever reads results.
fn log_to_stderr(level: Level) {
    // Libraries are of interest only to who debugs them.
    let directives = format!("warn,dns_proxy={level}");
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .init();
}
