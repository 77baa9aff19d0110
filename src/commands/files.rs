//! Commands about files beside the pictures: the set-up, the models, feature files.

use std::path::Path;

use crate::cli::{Features, ModelFiles, Models, Setup};
use crate::config::PipelineConfig;
use crate::embedders::Runtime;
use crate::exchange;
use crate::exit::{Exit, UsageError};
use crate::models::calibrate::{self, Ranges};
use crate::models::card::Card;
use crate::models::{self, FileState, Resize, build};
use crate::objects::ObjectUrl;
use crate::setup;
use crate::stages::decode::{self, DecodeOptions};
use crate::stages::preprocess;

use super::say;

/// `imagedex setup`
pub fn setup(args: &Setup) -> anyhow::Result<Exit> {
    let options = setup::Options {
        cache: setup::cache_dir(args.cache.as_deref()),
        all_samples: args.all_samples,
        calibration: args.calibration,
        verify: args.verify,
        search_path: None,
    };
    let report = setup::run(&options, &|line| tracing::info!("{line}"))?;
    say(format!("{report}\n").as_bytes())?;
    Ok(Exit::Done)
}

/// `imagedex models build|verify|calibrate`
pub fn models(command: &Models) -> anyhow::Result<Exit> {
    match command {
        Models::Build { weights, files } => build_models(weights.as_deref(), files),
        Models::Verify(files) => verify_models(files),
        Models::Calibrate { photos, output, files } => calibrate_model(photos.as_deref(), output, files),
    }
}

fn build_models(weights: Option<&Path>, files: &ModelFiles) -> anyhow::Result<Exit> {
    let card = Card::find(&files.card)?;
    let cache = setup::cache_dir(files.cache.as_deref());
    let weights = weights.map_or_else(|| setup::weights_file(&cache), Path::to_owned);
    let mut text = String::new();
    for built in build::build(&card, &weights, &Ranges::shipped()?, &models::dir(&cache))? {
        let what = if built.made { "built" } else { "ready" };
        text += &format!("{what}: {} ({} MB)\n", built.file.display(), built.bytes / 1_000_000);
    }
    say(text.as_bytes())?;
    Ok(Exit::Done)
}

fn verify_models(files: &ModelFiles) -> anyhow::Result<Exit> {
    let card = Card::find(&files.card)?;
    let rows = models::verify(&card, &models::dir(&setup::cache_dir(files.cache.as_deref())))?;
    let width = rows.iter().map(|row| row.file.len()).max().unwrap_or(0);
    let text: String = rows.iter().map(|row| format!("{:width$}  {}\n", row.file, row.state)).collect();
    say(text.as_bytes())?;
    let right = rows.iter().all(|row| row.state == FileState::Right);
    Ok(if right { Exit::Done } else { Exit::Infrastructure })
}

fn calibrate_model(photos: Option<&Path>, output: &Path, files: &ModelFiles) -> anyhow::Result<Exit> {
    let cache = setup::cache_dir(files.cache.as_deref());
    let photos = photos.map_or_else(|| setup::calibration_dir(&cache), Path::to_owned);
    let runtime = Runtime { library: setup::runtime_library(&cache), threads: threads(), cache: None };
    let read = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        let image = decode::decode(&bytes, &DecodeOptions::default()).map_err(|error| error.to_string())?;
        preprocess::resize(&image, calibrate::SIDE as u32, Resize::Nearest).map_err(|error| error.to_string())
    };
    let pictures = calibrate::pictures(&photos)?;
    let ranges = calibrate::calibrate(&setup::weights_file(&cache), &pictures, read, &runtime)?;
    std::fs::write(output, ranges.to_toml())
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", output.display()))?;
    say(format!("{}: ranges of {} pictures\n", output.display(), ranges.pictures).as_bytes())?;
    Ok(Exit::Done)
}

/// One for each core.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `imagedex features export|import|verify|compare`
pub fn features(command: &Features) -> anyhow::Result<Exit> {
    if let Features::Verify { repair, pipeline } = command {
        let config = PipelineConfig::load(&pipeline.pipeline, &pipeline.overrides.set)?;
        return crate::pipeline::verify(&config, *repair);
    }
    let runtime = crate::pipeline::async_runtime()?;
    let text = match command {
        Features::Export { file, pipeline } => {
            let config = PipelineConfig::load(&pipeline.pipeline, &pipeline.overrides.set)?;
            if config.features_at.is_some() {
                // Makes its copy what the table is.
                drop(crate::pipeline::Run::look(&config)?);
            }
            let rows = runtime.block_on(exchange::export_within(config.memory, &config.features, file))?;
            format!("{}: {rows} rows\n", file.display())
        }
        Features::Import { table, .. } if ObjectUrl::of(table).is_some() => {
            let reason = format!(
                "{} is in an object store; import into a folder, and send that folder there (as with `aws s3 cp --recursive`)",
                table.display()
            );
            return Err(UsageError(reason).into());
        }
        Features::Import { file, table } => {
            let rows = runtime.block_on(exchange::import(file, table))?;
            format!("{}: {rows} rows\n", table.display())
        }
        Features::Compare { first, second, worst } => {
            runtime.block_on(exchange::compare(first, second))?.table(*worst).to_string()
        }
        Features::Verify { .. } => String::new(),
    };
    say(text.as_bytes())?;
    Ok(Exit::Done)
}
