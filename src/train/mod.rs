//! (being written)

pub mod dialogue;
pub mod format;

// PLACEHOLDER until the train branch has these.
pub mod recipe {
    pub struct Recipe {
        pub model: String,
    }
    impl Recipe {
        pub fn read(_: &std::path::Path) -> anyhow::Result<Recipe> {
            anyhow::bail!("not in this build yet")
        }
    }
}
pub mod plan {
    pub fn plan(_: &super::recipe::Recipe) -> anyhow::Result<String> {
        anyhow::bail!("not in this build yet")
    }
}
#[derive(Default)]
pub struct FinetuneOptions {}
pub fn finetune(_: &recipe::Recipe, _: &std::path::Path, _: &FinetuneOptions) -> anyhow::Result<String> {
    anyhow::bail!("not in this build yet")
}
