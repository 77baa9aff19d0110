//! Who embeds: this process, or a cluster.
//!
//! On one machine pictures go straight from the decoders to the model and from there to the table, and not through a query with one process
//! on both ends: that would give the same vectors, since the function of the query calls the same stages, and cost their serialisation.

use std::sync::atomic::AtomicBool;

use super::Run;
#[cfg(feature = "distributed")]
use crate::cluster::{driver::Driver, spec::WorkSpec};
use crate::embedders::Embedder;
use crate::models::ModelSpec;
use crate::stages::decode::PictureOptions;
use crate::stages::embed::{self, Embedded, EmbeddingBatch};
use crate::stages::preprocess::ImageBatch;
use crate::stages::scan::Seen;

/// What turns pictures into rows.
pub(super) enum Work {
    Here(Box<dyn Embedder>),
    #[cfg(feature = "distributed")]
    Cluster(Box<Driver>),
}

impl Run<'_> {
    /// Certificates that cannot be read, and a scheduler that is not there, are said before hours of work. The scheduler may come by the time
    /// that it is needed, if it is.
    pub(super) fn look_for_cluster(&self) -> anyhow::Result<()> {
        #[cfg(feature = "distributed")]
        if let Some(cluster) = &self.config.cluster
            && let Err(reason) = Driver::look(cluster, self.runtime.handle())?
        {
            tracing::warn!("scheduler {} does not answer yet: {reason}", cluster.address());
        }
        Ok(())
    }

    /// Opens the model here, or asks a cluster whether it has it.
    pub(super) fn start_work(&self, spec: &ModelSpec) -> anyhow::Result<Work> {
        #[cfg(feature = "distributed")]
        if let Some(cluster) = &self.config.cluster {
            let decode = self.picture_options(spec, Default::default()).decode;
            let models = crate::models::dir(&self.cache);
            let work = WorkSpec::new(spec, &models, decode, &self.inference())?;
            let driver = Driver::connect(cluster, &work, self.runtime.handle(), &crate::interrupt::STOP)?;
            return Ok(Work::Cluster(Box::new(driver)));
        }
        Ok(Work::Here(self.embedder(spec.clone())?))
    }
}

impl Work {
    /// What computes, in one line.
    pub(super) fn describe(&self) -> String {
        match self {
            Work::Here(embedder) => embedder.describe(),
            #[cfg(feature = "distributed")]
            Work::Cluster(driver) => driver.describe(),
        }
    }

    /// What the model takes of this process shows when it has worked.
    pub(super) fn warm_up(&mut self, blank: ImageBatch) -> anyhow::Result<()> {
        match self {
            Work::Here(embedder) => drop(embedder.embed(blank)?),
            #[cfg(feature = "distributed")]
            Work::Cluster(_) => {}
        }
        Ok(())
    }

    /// As [`embed::embed`]; `commit` also gets what computed the chunk.
    pub(super) fn embed(
        &mut self,
        images: &[Seen],
        options: &PictureOptions,
        stop: &AtomicBool,
        mut commit: impl FnMut(EmbeddingBatch, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Embedded> {
        match self {
            Work::Here(embedder) => {
                let runtime = embedder.describe();
                embed::embed(embedder.as_mut(), images, options, stop, |chunk| commit(chunk, &runtime))
            }
            #[cfg(feature = "distributed")]
            Work::Cluster(driver) => driver.embed(images, options.shares, stop, commit),
        }
    }
}
