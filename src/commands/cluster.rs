//! `imagedex cluster`: a scheduler, an executor.

use crate::cli::Cluster;
use crate::exit::Exit;

#[cfg(not(feature = "distributed"))]
pub fn cluster(_: &Cluster) -> anyhow::Result<Exit> {
    Err(crate::exit::UsageError(crate::cluster::NOT_BUILT.to_owned()).into())
}

#[cfg(feature = "distributed")]
pub fn cluster(command: &Cluster) -> anyhow::Result<Exit> {
    use std::net::IpAddr;

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
            if bind.is_unspecified() && host.is_none() {
                let reason =
                    format!("--bind {bind} is no name under which others can reach it; give one with --host");
                return Err(UsageError(reason).into());
            }
            let scheduler = parse_address(scheduler).map_err(UsageError)?;
            let is_here = |host: &str| {
                host == "localhost"
                    || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            };
            if bind.is_loopback() && host.is_none() && !is_here(&scheduler.0) {
                let reason =
                    format!("nobody reaches --bind {bind} from other machines; give an address of this one");
                return Err(UsageError(reason).into());
            }
            let cache = setup::cache_dir(cache.as_deref());
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            executor::run(&ExecutorOptions {
                scheduler,
                bind: *bind,
                port: *port,
                host: host.clone().unwrap_or_else(|| executor::in_url(*bind)),
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
