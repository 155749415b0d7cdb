# Cross-compile the self-test for aarch64 and run it under an emulator:
#
#   cmake -S native -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=tests/aarch64.cmake -DNORMX_BUILD_TESTS=ON
#
# with Debian's packages g++-aarch64-linux-gnu and qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
