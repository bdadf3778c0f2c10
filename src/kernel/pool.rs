//! Workers' buffers, kept from one item of work to the next.

use std::sync::Mutex;

/// As many buffers as were ever in use at once.
pub struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool(Mutex::new(Vec::new()))
    }
}

impl<T: Default> Pool<T> {
    /// Runs `work` with a buffer that nobody else is using; it holds what an earlier use left in it.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let kept = self.0.lock().expect("nothing panics while this is held").pop();
        let mut buffer = kept.unwrap_or_default();
        let result = work(&mut buffer);
        self.0.lock().expect("as above").push(buffer);
        result
    }
}
