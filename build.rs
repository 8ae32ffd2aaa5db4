//! Generates the driver's gRPC interface without needing `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/v1alpha1/service.proto");
    let descriptors = protox::compile(["v1alpha1/service.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Requests carry ServiceAccount tokens and answers carry secrets: neither may be printable.
        .skip_debug(["v1alpha1.MountRequest", "v1alpha1.MountResponse", "v1alpha1.File"])
        .compile_fds(descriptors)?;
    Ok(())
}
