//! ONNX Runtime for NVIDIA's GPUs with what its CUDA provider needs: CUDA 13.0, which drivers from 580 on run, and cuDNN 9.
//!
//! All lie in one folder, where most find each other by themselves; the server opens the rest before they are wanted. Of
//! CUDA's wheels only libraries are kept that are loaded.

use super::{Package, PinnedFile, Wheel, pinned};
use crate::backend::runtime_paths::{
    ONNXRUNTIME_GPU_INSTALL, ONNXRUNTIME_LIBRARY, ONNXRUNTIME_VERSION, onnxruntime_gpu_folder,
};

pub(super) static ONNXRUNTIME_GPU: [Package; 1] = [Package {
    name: "onnxruntime-gpu",
    version: ONNXRUNTIME_VERSION,
    install: ONNXRUNTIME_GPU_INSTALL,
    folder: onnxruntime_gpu_folder,
    arch: "x86_64",
    python: ["3.12", "cp312"],
    platforms: &["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux2010_x86_64"],
    bytes: 1_451_571_342,
    wheels: &[
        wheel(
            "onnxruntime-gpu",
            ONNXRUNTIME_VERSION,
            "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
            &[
                pinned(
                    "onnxruntime/capi/libonnxruntime.so.1.31.1",
                    ONNXRUNTIME_LIBRARY,
                    29_421_832,
                    "5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303",
                ),
                pinned(
                    "onnxruntime/capi/libonnxruntime_providers_shared.so",
                    "libonnxruntime_providers_shared.so",
                    14_632,
                    "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
                ),
                pinned(
                    "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                    "libonnxruntime_providers_cuda.so",
                    284_014_752,
                    "8387867e857499e045caff5d13ac6a5de29571c801562fa2dde0e45f1f31de52",
                ),
                pinned(
                    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
                    "libonnxruntime_providers_tensorrt.so",
                    994_968,
                    "1882ee49fdb0e6fc2d272b00cfaf9a3310bf8580a34385c0eec4d82014ea172e",
                ),
            ],
        ),
        wheel(
            "nvidia-cuda-runtime",
            "13.0.96",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
            &[pinned(
                "nvidia/cu13/lib/libcudart.so.13",
                "libcudart.so.13",
                704_288,
                "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0",
            )],
        ),
        wheel(
            "nvidia-cublas",
            "13.1.0.3",
            "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
            &[
                pinned(
                    "nvidia/cu13/lib/libcublasLt.so.13",
                    "libcublasLt.so.13",
                    541_595_600,
                    "656298c804f5adbb0df930545c17911b9584ab4e5101c0eeb65d1fe881d880f8",
                ),
                pinned(
                    "nvidia/cu13/lib/libcublas.so.13",
                    "libcublas.so.13",
                    54_177_976,
                    "e70f38efabe986acd5eb683497c62f0f1730a6176ee291d9d24c6e339d1fbf86",
                ),
            ],
        ),
        wheel(
            "nvidia-curand",
            "10.4.0.35",
            "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
            &[pinned(
                "nvidia/cu13/lib/libcurand.so.10",
                "libcurand.so.10",
                132_698_328,
                "b53732a66b302b11926e00f762e2c2ba67058347ff93cf4ae709de45e93e06da",
            )],
        ),
        wheel(
            "nvidia-nvjitlink",
            "13.0.88",
            "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
            &[pinned(
                "nvidia/cu13/lib/libnvJitLink.so.13",
                "libnvJitLink.so.13",
                98_806_736,
                "931347fa77d9fd5511059e04627f122b1ee33e409f22c3273ddddbe065713a3a",
            )],
        ),
        wheel(
            "nvidia-cufft",
            "12.0.0.61",
            "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
            &[pinned(
                "nvidia/cu13/lib/libcufft.so.12",
                "libcufft.so.12",
                286_542_352,
                "0933f68bb7e3bf90f86d70bc87cd2f69027f7757e89e5de5e19ec33a53fd8d3a",
            )],
        ),
        wheel(
            "nvidia-cuda-nvrtc",
            "13.0.88",
            "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
            &[
                pinned(
                    "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
                    "libnvrtc-builtins.so.13.0",
                    4_380_616,
                    "91dcd944d01da9c0f08fff5d779db136a47f6d62bdb63bae900d2f481e92c3a2",
                ),
                pinned(
                    "nvidia/cu13/lib/libnvrtc.so.13",
                    "libnvrtc.so.13",
                    109_338_064,
                    "a49e67e8e74590f1e98de55c39c6287efd3f59e3c3797464d7bbe0fe01349b11",
                ),
            ],
        ),
        wheel(
            "nvidia-cudnn-cu13",
            "9.19.0.56",
            "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
            &[
                pinned(
                    "nvidia/cudnn/lib/libcudnn.so.9",
                    "libcudnn.so.9",
                    129_240,
                    "94f44e2e8fb2d4bca8c534b14f03ef84e095376dad72a257fd854377ef0b3427",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_graph.so.9",
                    "libcudnn_graph.so.9",
                    4_451_728,
                    "e292c689093f22325bffb7f84e68c58067c062a5cdd5534914ac1449f0a4e23f",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_ops.so.9",
                    "libcudnn_ops.so.9",
                    39_855_888,
                    "3e9182b90e8ba33027c1dcf42741ba2a8799eef3e8047cf341e00a6091ddec97",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_heuristic.so.9",
                    "libcudnn_heuristic.so.9",
                    60_822_040,
                    "9e0202a6bcc055fc921972f335be9eeec95e469582e0f603f6548df5209ab7dc",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_adv.so.9",
                    "libcudnn_adv.so.9",
                    109_169_104,
                    "87e2199f5bca489a1ed863afbb0b421c822fe0081a956d8c69216b3ae37c135f",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_cnn.so.9",
                    "libcudnn_cnn.so.9",
                    4_203_904,
                    "36480b885ab03685d9b07c9fca4bbaeb3e7c3c7c4d81297cf8195b72cd3d8f20",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9",
                    "libcudnn_engines_precompiled.so.9",
                    245_391_920,
                    "7f8ce268b43c0fab298cc43854a006195bc16c0ed43bedf63b11f3699e92c6ae",
                ),
                pinned(
                    "nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9",
                    "libcudnn_engines_runtime_compiled.so.9",
                    29_386_400,
                    "1b0025cfeab270688d4563e287a5009389464ff140d0ebcf708314223523b99b",
                ),
            ],
        ),
    ],
}];

const fn wheel(name: &'static str, version: &'static str, sha256: &'static str, files: &'static [PinnedFile]) -> Wheel {
    Wheel { name, version, sha256, files, trees: &[], tree_bytes: 0 }
}
