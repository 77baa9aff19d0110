//! `imagedex cluster`: a scheduler, an executor.

use crate::cli::Cluster;
use crate::exit::Exit;

#[cfg(not(feature = "distributed"))]
pub fn cluster(_: &Cluster) -> anyhow::Result<Exit> {
    Err(crate::exit::UsageError(crate::cluster::NOT_BUILT.to_owned()).into())
}

#[cfg(feature = "distributed")]
pub fn cluster(command: &Cluster) -> anyhow::Result<Exit> {
    use std::net::{IpAddr, Ipv4Addr};

    use crate::cluster::executor::{self, ExecutorOptions};
    use crate::cluster::scheduler::{self, SchedulerOptions};
    use crate::cluster::{TlsFiles, parse_address};
    use crate::exit::UsageError;
    use crate::{embedders, setup};

    let files = |tls: &crate::cli::TlsArgs| -> Option<TlsFiles> {
        Some(TlsFiles { ca: tls.ca.clone()?, cert: tls.cert.clone()?, key: tls.key.clone()? })
    };
    match command {
        Cluster::Scheduler { bind, port, executor_timeout, tls } => {
            let tls = files(tls);
            let executor_timeout = *executor_timeout;
            scheduler::run(&SchedulerOptions { bind: *bind, port: *port, executor_timeout, tls })?;
        }
        Cluster::Executor {
            scheduler,
            bind,
            port,
            host,
            tasks,
            threads,
            work,
            library,
            cache,
            patience,
            tls,
        } => {
            let usage = |reason: String| anyhow::Error::from(UsageError(reason));
            let scheduler = parse_address(scheduler).map_err(usage)?;
            let is_here = scheduler.0.eq_ignore_ascii_case("localhost")
                || scheduler.0.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
            if bind.is_none() && !is_here {
                let reason =
                    format!("{} is another machine; give the address of this one with --bind", scheduler.0);
                return Err(usage(reason));
            }
            let bind = bind.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            if bind.is_unspecified() && host.is_none() {
                let reason =
                    format!("--bind {bind} is no name under which others can reach it; give one with --host");
                return Err(usage(reason));
            }
            let host = host.clone().unwrap_or_else(|| executor::in_url(bind));
            if url::Host::parse(&host).is_err() {
                return Err(usage(format!("--host {host:?} is neither a name nor an address")));
            }
            let cache = setup::cache_dir(cache.as_deref());
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            executor::run(&ExecutorOptions {
                scheduler,
                bind,
                port: *port,
                host,
                tasks: usize::from(*tasks),
                work: work.clone(),
                runtime: embedders::Runtime {
                    library: library.clone().unwrap_or_else(|| setup::runtime_library(&cache)),
                    threads: threads.map_or(cores, usize::from),
                    cache: None,
                },
                cache,
                patience: *patience,
                tls: files(tls),
            })?;
        }
    }
    Ok(Exit::Done)
}
