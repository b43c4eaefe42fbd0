//! The functions of a table: what C calls, each for a backend of Rust types. Panics stop here.

use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Backend, Failure, Host, Input, Instance, LoadRequest, Model, Outputs, slice};
use crate::{
    FAILED, OK, RoundhouseDeviceKind, RoundhouseDeviceMemory, RoundhouseError, RoundhouseHost, RoundhouseInput,
    RoundhouseInstance, RoundhouseLoadRequest, RoundhouseModel, RoundhouseModelInfo, RoundhouseModelMemory,
    RoundhouseOutput, RoundhouseStatus,
};

type ModelOf<B> = <B as Backend>::Model;
type InstanceOf<B> = <ModelOf<B> as Model>::Instance;
type OutputOf<B> = <InstanceOf<B> as Instance>::Output;

/// Runs a function of the backend and turns what it says, or its panic, into a status.
fn guard(error: *mut RoundhouseError, work: impl FnOnce() -> Result<(), Failure>) -> RoundhouseStatus {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::failed(format!("the backend panicked: {}", words(&*panic))),
    };
    // SAFETY: null or the server's place for an error, which is nobody else's for the length of the call.
    if let Some(error) = unsafe { error.as_mut() } {
        error.set(&failure.text);
    }
    if failure.kind == OK { FAILED } else { failure.kind }
}

/// The words of a panic.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

pub(super) unsafe extern "C" fn initialize<B: Backend>(
    host: *const RoundhouseHost,
    error: *mut RoundhouseError,
) -> RoundhouseStatus {
    // SAFETY: the server passes its own description, which lives as long as the process.
    guard(error, || B::initialize(Host(unsafe { &*host })))
}

pub(super) unsafe extern "C" fn load<B: Backend>(
    request: *const RoundhouseLoadRequest,
    model: *mut *mut RoundhouseModel,
    error: *mut RoundhouseError,
) -> RoundhouseStatus {
    guard(error, || {
        // SAFETY: the server passes a request that lives until this returns.
        let loaded = B::load(&LoadRequest(unsafe { &*request }))?;
        // SAFETY: the server passes a place for one pointer.
        unsafe { *model = Box::into_raw(Box::new(loaded)).cast() };
        Ok(())
    })
}

pub(super) unsafe extern "C" fn describe<B: Backend>(
    model: *const RoundhouseModel,
    info: *mut RoundhouseModelInfo,
    error: *mut RoundhouseError,
) -> RoundhouseStatus {
    guard(error, || {
        // SAFETY: a model that `load` gave and that was not unloaded.
        let signature = unsafe { &*model.cast::<ModelOf<B>>() }.signature();
        let described = RoundhouseModelInfo {
            inputs: signature.inputs.as_ptr().cast(),
            input_count: signature.inputs.len(),
            outputs: signature.outputs.as_ptr().cast(),
            output_count: signature.outputs.len(),
            flags: signature.flags,
            reserved: 0,
        };
        // SAFETY: the server passes a place for one description.
        unsafe { *info = described };
        Ok(())
    })
}

pub(super) unsafe extern "C" fn instantiate<B: Backend>(
    model: *mut RoundhouseModel,
    instance: *mut *mut RoundhouseInstance,
    error: *mut RoundhouseError,
) -> RoundhouseStatus {
    guard(error, || {
        // SAFETY: as in `describe`.
        let made = unsafe { &*model.cast::<ModelOf<B>>() }.instance()?;
        // SAFETY: the server passes a place for one pointer.
        unsafe { *instance = Box::into_raw(Box::new(made)).cast() };
        Ok(())
    })
}

pub(super) unsafe extern "C" fn infer<B: Backend>(
    instance: *mut RoundhouseInstance,
    inputs: *const RoundhouseInput,
    input_count: usize,
    wanted: *const usize,
    outputs: *mut RoundhouseOutput,
    output_count: usize,
    error: *mut RoundhouseError,
) -> RoundhouseStatus {
    guard(error, || {
        // SAFETY: an instance that `instantiate` gave, in one call at a time.
        let instance = unsafe { &mut *instance.cast::<InstanceOf<B>>() };
        // SAFETY: arrays of so many, as the server promises; `Input` has the layout of C's struct.
        let (inputs, wanted) = unsafe { (slice(inputs.cast::<Input<'_>>(), input_count), slice(wanted, output_count)) };
        let room = match output_count {
            0 => &mut [][..],
            // SAFETY: the server's room for so many outputs, which is nobody else's for the length of the call.
            count => unsafe { std::slice::from_raw_parts_mut(outputs, count) },
        };
        let mut outputs = Outputs::<OutputOf<B>> { room, given: 0, owners: PhantomData };
        let done = catch_unwind(AssertUnwindSafe(|| instance.infer(inputs, wanted, &mut outputs)));
        match done {
            Ok(Ok(())) if outputs.given == wanted.len() => Ok(()),
            Ok(done) => {
                let given = outputs.given;
                outputs.clear();
                done?;
                Err(Failure::failed(format!("the backend gave {given} outputs where {} were wanted", wanted.len())))
            }
            Err(panic) => {
                outputs.clear();
                std::panic::resume_unwind(panic)
            }
        }
    })
}

/// Drops what a pointer from here stands for. A panic of the drop stops here: there is nobody to tell.
fn end<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: the server hands back, once, a pointer that was made of a box of this type.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(pointer) })));
    }
}

pub(super) unsafe extern "C" fn release<B: Backend>(owner: *mut c_void) {
    end(owner.cast::<OutputOf<B>>());
}

pub(super) unsafe extern "C" fn end_instance<B: Backend>(instance: *mut RoundhouseInstance) {
    end(instance.cast::<InstanceOf<B>>());
}

pub(super) unsafe extern "C" fn unload<B: Backend>(model: *mut RoundhouseModel) {
    end(model.cast::<ModelOf<B>>());
}

pub(super) unsafe extern "C" fn model_memory<B: Backend>(
    model: *const RoundhouseModel,
    memory: *mut RoundhouseModelMemory,
) -> RoundhouseStatus {
    guard(std::ptr::null_mut(), || {
        // SAFETY: as in `describe`; the server passes a place for the answer.
        let (model, memory) = unsafe { (&*model.cast::<ModelOf<B>>(), &mut *memory) };
        *memory = model.memory().ok_or_else(|| Failure::unsupported(""))?;
        Ok(())
    })
}

pub(super) unsafe extern "C" fn device_memory<B: Backend>(
    kind: RoundhouseDeviceKind,
    id: u32,
    memory: *mut RoundhouseDeviceMemory,
) -> RoundhouseStatus {
    guard(std::ptr::null_mut(), || {
        let held = B::device_memory(kind, id).ok_or_else(|| Failure::unsupported(""))?;
        // SAFETY: the server passes a place for the answer.
        unsafe { *memory = held };
        Ok(())
    })
}

pub(super) unsafe extern "C" fn empty_cache<B: Backend>(kind: RoundhouseDeviceKind, id: u32) {
    let _ = catch_unwind(|| B::empty_cache(kind, id));
}
