//! A COCO annotation file: pictures, regions in them, and the category of each region.
//!
//! A picture has one class here, and may have regions of many categories: its class is the category whose regions cover the most
//! of it. How many pictures that was a choice for is logged. Outlines, which are most of such a file, are passed over unread.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::manifest::{Objects, Place};
use super::{ImageRef, LabelRule, Scan, ScanError, ScanOptions, Split};

/// Whether a file is taken for one, by its ending.
pub(super) fn is_coco(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
}

/// What the names in a COCO file count from: `images` if it is given; for `annotations/instances_X.json` the folder `X` or
/// `images/X` beside `annotations`, for another file in `annotations` the folder `images` there; else the file's own folder.
pub(super) fn folder(file: &Path, images: Option<&Path>) -> PathBuf {
    if let Some(images) = images {
        return images.to_owned();
    }
    let own = file.parent().unwrap_or(Path::new(""));
    if own.file_name().is_some_and(|name| name == "annotations") {
        let above = own.parent().unwrap_or(Path::new(""));
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let part = stem.split_once('_').map_or(&*stem, |(_, part)| part);
        for folder in [above.join(part), above.join("images").join(part), above.join("images")] {
            if folder.is_dir() {
                return folder;
            }
        }
    }
    own.to_owned()
}

/// The part of the format that says what is in a picture.
#[derive(Deserialize)]
struct Coco {
    images: Option<Vec<Image>>,
    annotations: Option<Vec<Annotation>>,
    categories: Option<Vec<Category>>,
}

#[derive(Deserialize)]
struct Image {
    id: Number,
    file_name: Option<String>,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Number,
    category_id: Option<Number>,
    /// Pixels.
    area: Option<f64>,
    /// Left, top, width, height.
    bbox: Option<Vec<f64>>,
}

impl Annotation {
    fn covered(&self) -> f64 {
        let of_box = match self.bbox.as_deref() {
            Some([_, _, width, height]) => width * height,
            _ => 0.0,
        };
        self.area.filter(|area| *area > 0.0).unwrap_or(of_box).max(0.0)
    }
}

#[derive(Deserialize)]
struct Category {
    id: Number,
    name: Option<String>,
    supercategory: Option<String>,
}

/// An id: a number, and of some tools a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Number {
    Whole(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an id, a whole number or a text")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number::Whole(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Number, E> {
                i64::try_from(number).map(Number::Whole).map_err(|_| E::custom("the id is too large"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                Ok(Number::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Adds its pictures, all of one split.
pub(super) fn scan(
    file: &Path,
    split: Split,
    options: &ScanOptions,
    scan: &mut Scan,
) -> Result<(), ScanError> {
    let wrong = |reason: String| ScanError::Manifest { path: file.to_owned(), reason };
    let what = "a COCO file is an object with `images`, `annotations` and `categories`";
    let opened = File::open(file).map_err(|error| wrong(error.to_string()))?;
    let coco: Coco = serde_json::from_reader(BufReader::with_capacity(1 << 20, opened))
        .map_err(|error| wrong(format!("{error}; {what}")))?;
    let (Some(images), Some(annotations), Some(categories)) =
        (coco.images, coco.annotations, coco.categories)
    else {
        return Err(wrong(format!("it lacks one of them: {what}")));
    };
    let classes = classes(&categories, &options.label).map_err(|column| ScanError::NoColumn {
        what: split.input(),
        path: file.to_owned(),
        column,
        found: "found: name, supercategory".to_owned(),
    })?;
    let of_images = main_categories(&images, &annotations, &categories, scan);
    drop(annotations);
    let folder = folder(file, options.images.as_deref());
    let place = Place::of(&folder, options, "COCO file").map_err(|error| wrong(error.to_string()))?;
    let mut objects = Objects::default();
    let mut several = 0;
    for (number, (image, main)) in images.into_iter().zip(of_images).enumerate() {
        let row = format!("picture {}", number + 1);
        let Some(path) = image.file_name.filter(|name| !name.is_empty()) else {
            scan.fail(&row, split, "name", "it has no file_name");
            continue;
        };
        let id = place.name(&path);
        match place.picture(&path, &id, &row) {
            Err((kind, reason)) => scan.fail(&id, split, kind, reason),
            Ok(source) => {
                several += usize::from(main.is_some_and(|main| main.of_several));
                let label = match &options.label {
                    LabelRule::None => None,
                    rule @ (LabelRule::Regex(_) | LabelRule::TopFolder) => rule.label(&id),
                    _ => main.and_then(|main| classes[main.category].clone()),
                };
                objects.add(row, ImageRef { id, split, label, source }, scan);
            }
        }
    }
    objects.find(scan)?;
    if several > 0 && matches!(options.label, LabelRule::Folder | LabelRule::Column(_)) {
        tracing::info!(
            "{}: {several} pictures have regions of several categories; their class is the one that covers the most",
            file.display()
        );
    }
    Ok(())
}

/// The class that each category stands for. Errors: the column that no category has.
fn classes(categories: &[Category], rule: &LabelRule) -> Result<Vec<Option<String>>, String> {
    let of: fn(&Category) -> &Option<String> = match rule {
        LabelRule::Column(column) if column == "supercategory" => |category| &category.supercategory,
        LabelRule::Column(column) if column != "name" => return Err(column.clone()),
        _ => |category| &category.name,
    };
    let given = |category| of(category).clone().filter(|class| !class.is_empty());
    Ok(categories.iter().map(given).collect())
}

/// The category that covers the most of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Main {
    /// Its place in the list.
    category: usize,
    /// Whether there were others.
    of_several: bool,
}

/// For each picture; nothing where it has no regions. Of equal areas the category with more regions wins, then the one that is
/// listed first.
fn main_categories(
    images: &[Image],
    annotations: &[Annotation],
    categories: &[Category],
    scan: &mut Scan,
) -> Vec<Option<Main>> {
    // Of two with one id the first is meant.
    fn places<'a>(ids: impl DoubleEndedIterator<Item = (usize, &'a Number)>) -> HashMap<&'a Number, usize> {
        ids.rev().map(|(place, id)| (id, place)).collect()
    }
    let of_image = places(images.iter().map(|image| &image.id).enumerate());
    let of_category = places(categories.iter().map(|category| &category.id).enumerate());
    // Pixels and regions.
    let mut totals: HashMap<(usize, usize), (f64, usize)> = HashMap::new();
    for annotation in annotations {
        let category = annotation.category_id.as_ref().and_then(|id| of_category.get(id));
        let (Some(image), Some(category)) = (of_image.get(&annotation.image_id), category) else {
            scan.skip("regions of unknown pictures or categories");
            continue;
        };
        let (area, regions) = totals.entry((*image, *category)).or_default();
        *area += annotation.covered();
        *regions += 1;
    }
    let mut totals: Vec<_> = totals.into_iter().collect();
    totals.sort_by(|((a, first), (area, regions)), ((b, second), (other_area, other_regions))| {
        let more = other_area.total_cmp(area).then(other_regions.cmp(regions));
        a.cmp(b).then(more).then(first.cmp(second))
    });
    let mut main: Vec<Option<Main>> = vec![None; images.len()];
    for ((image, category), _) in totals {
        match &mut main[image] {
            Some(first) => first.of_several = true,
            none => *none = Some(Main { category, of_several: false }),
        }
    }
    main
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_category_that_covers_the_most_is_a_pictures_class() {
        let coco: Coco = serde_json::from_str(
            r#"{"images": [{"id": 7}, {"id": "b"}, {"id": 9}, {"id": 7}],
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
                "annotations": [
                  {"image_id": 7, "category_id": 1, "area": 10.5, "segmentation": [[1, 2, 3]]},
                  {"image_id": 7, "category_id": 2, "bbox": [0, 0, 3, 4]},
                  {"image_id": "b", "category_id": 2, "area": 5},
                  {"image_id": "b", "category_id": 1, "area": 2},
                  {"image_id": "b", "category_id": 1, "area": 3},
                  {"image_id": "b", "category_id": 3, "area": 300},
                  {"image_id": 8, "category_id": 1}]}"#,
        )
        .unwrap();
        let mut scan = Scan::default();
        let (images, categories) = (coco.images.unwrap(), coco.categories.unwrap());
        let main = main_categories(&images, &coco.annotations.unwrap(), &categories, &mut scan);
        let several = |category| Some(Main { category, of_several: true });
        assert_eq!(main, [several(1), several(0), None, None]);
        assert_eq!(scan.skipped["regions of unknown pictures or categories"], 2);
    }

    #[test]
    fn pictures_are_where_coco_puts_them() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let file = at("annotations/instances_val2017.json");
        assert_eq!(folder(&file, None), at("annotations"));
        for (name, found) in
            [("images", "images"), ("images/val2017", "images/val2017"), ("val2017", "val2017")]
        {
            std::fs::create_dir_all(at(name)).unwrap();
            assert_eq!(folder(&file, None), at(found));
        }
        assert_eq!(folder(&at("val2017/_annotations.coco.json"), None), at("val2017"));
        assert_eq!(folder(&file, Some(Path::new("elsewhere"))), Path::new("elsewhere"));
    }
}
