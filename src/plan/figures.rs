//! The measured figures that a plan is calculated with: `docs/sizing.tsv`, as it is in the repository.

/// One measured number.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured, such as `disk.store`.
    pub name: String,
    /// The index option, precision or metric that it was measured with.
    pub option: String,
    pub setting: String,
    /// Of how many documents.
    pub documents: f64,
    pub value: f64,
    /// Command, date and machine.
    pub source: String,
}

/// The table of figures.
#[derive(Debug, Clone)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// The figures in the repository.
    ///
    /// # Errors
    /// A row that cannot be read: the program was built from a damaged table.
    pub fn shipped() -> anyhow::Result<Figures> {
        Figures::parse(include_str!("../../docs/sizing.tsv"))
    }

    /// Reads the table: comments, a line of names, and seven cells a line, of which the unit is for people.
    ///
    /// # Errors
    /// A line with more cells or fewer, or a number that is none.
    pub fn parse(text: &str) -> anyhow::Result<Figures> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("figure\t"));
        let figures = lines.map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let [name, option, setting, documents, value, _unit, source] = cells[..] else {
                anyhow::bail!("docs/sizing.tsv: `{line}` has not seven cells");
            };
            Ok(Figure {
                name: name.to_owned(),
                option: option.to_owned(),
                setting: setting.to_owned(),
                documents: documents.parse()?,
                value: value.parse()?,
                source: source.to_owned(),
            })
        });
        Ok(Figures(figures.collect::<anyhow::Result<_>>()?))
    }

    /// All figures of a name and an option.
    pub fn all(&self, name: &str, option: &str) -> Vec<&Figure> {
        self.0.iter().filter(|figure| figure.name == name && figure.option == option).collect()
    }

    /// The figure of the most documents.
    ///
    /// # Errors
    /// There is none. Of the shipped table a test knows that it has all that plans need.
    pub fn largest(&self, name: &str, option: &str, setting: &str) -> anyhow::Result<&Figure> {
        let figures = self.all(name, option).into_iter().filter(|figure| figure.setting == setting);
        let largest = figures.max_by(|a, b| a.documents.total_cmp(&b.documents));
        largest.ok_or_else(|| anyhow::anyhow!("docs/sizing.tsv has no {name} of {option}, {setting}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_of_the_most_documents_counts() {
        let row = |documents, value| {
            format!("knn.cpu\thnsw\tcandidates=100\t{documents}\t{value}\tcore-ms\tmake a\n")
        };
        let figures = Figures::parse(&(row(100, 1) + &row(9_000, 2) + &row(800, 3))).expect("well-formed");
        let largest = figures.largest("knn.cpu", "hnsw", "candidates=100").expect("there");
        assert_eq!((largest.documents, largest.value), (9_000.0, 2.0));
        figures.largest("knn.cpu", "hnsw", "candidates=50").expect_err("not measured");
    }

    #[test]
    fn a_damaged_table_is_an_error() {
        for text in ["knn.cpu\thnsw\t1\n", "knn.cpu\thnsw\t-\tmany\t2\tms\tmake a\n", "\n"] {
            Figures::parse(text).expect_err(text);
        }
    }

    #[test]
    fn each_shipped_figure_names_the_command_that_measured_it() {
        for figure in Figures::shipped().expect("well-formed").0 {
            assert!(figure.source.contains("make ") || figure.source.contains("cargo bench"), "{figure:?}");
        }
    }
}
