//! What counts a cgroup's memory against its limit: read at each charge, so that each nanosecond counts.
//!
//! Owns the two ways to read a `struct page_counter`. Never reads anything else.

use core::{marker::PhantomData, ptr};

use super::{Address, LAYOUT, MemoryCgroup, read};

/// How the fields of a [`Counter`] are read.
pub trait Access {
    /// The integer or address that is there.
    ///
    /// # Safety
    /// It is a field of the object whose address the program was given, or of one that is followed to from there.
    unsafe fn word(address: Address) -> u64;
}

/// By a plain load, which the verifier allows where it knows the type: at fentry. An address that cannot be read gives zero.
pub struct Typed;

/// By the helper.
pub struct Untyped;

impl Access for Typed {
    #[inline(always)]
    unsafe fn word(address: Address) -> u64 {
        // SAFETY: by this function's contract; the kernel handles the fault of an address that cannot be read.
        unsafe { ptr::read_volatile(address.cast()) }
    }
}

impl Access for Untyped {
    #[inline(always)]
    unsafe fn word(address: Address) -> u64 {
        // SAFETY: an integer.
        unsafe { read(address.cast()) }
    }
}

/// A `struct page_counter`.
pub struct Counter<A>(Address, PhantomData<A>);

impl<A: Access> Counter<A> {
    /// The one at that address.
    #[inline(always)]
    pub fn at(address: Address) -> Self {
        Self(address, PhantomData)
    }

    /// Pages charged, and pages allowed.
    #[inline(always)]
    pub fn usage_and_limit(&self) -> (u64, u64) {
        let word = |offset: u32| {
            // SAFETY: the offset is that of a field.
            unsafe { A::word(self.0.wrapping_add(offset as usize)) }
        };
        (word(layout!(counter_usage)), word(layout!(counter_max)))
    }

    /// That of the cgroup above.
    #[inline(always)]
    pub fn parent(&self) -> Option<Self> {
        let address = self.0.wrapping_add(layout!(counter_parent) as usize);
        // SAFETY: the offset is that of the field.
        let parent = unsafe { A::word(address) };
        (parent != 0).then(|| Self::at(parent as Address))
    }

    /// The `struct mem_cgroup` that it is a part of, if it counts memory. Of a counter of anything else, an address that means
    /// nothing: what is read there does not lead to a tracked cgroup.
    #[inline(always)]
    pub fn memory_cgroup(&self) -> MemoryCgroup {
        MemoryCgroup::at(self.0.wrapping_sub(layout!(memcg_memory) as usize))
    }
}
