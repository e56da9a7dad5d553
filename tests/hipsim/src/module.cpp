// Modules: the image that hiprtc made is a shared object of the host, opened from a temporary file. Kernel launches.
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <list>
#include <map>
#include <set>

#include "sim.h"

namespace hipsim {

struct Module {
    int device = current_device();
    int file = -1;
    std::string path; // of the file, where it still has one
    void* library = nullptr;
    char* load_address = nullptr;
    char* variables_end = nullptr; // of those that were asked for
    std::string image;
    std::map<std::string, Kernel> kernels;
    ~Module() {
        disown_variables(load_address, variables_end);
        if (library) dlclose(library);
        if (file >= 0) close(file);
        if (!path.empty()) unlink(path.c_str());
    }
};
static std::map<Module*, std::shared_ptr<Module>> modules;
static std::set<const Kernel*> functions;

static size_t elf_size(const char* image) {
    auto* header = reinterpret_cast<const Elf64_Ehdr*>(image);
    return header->e_shoff + size_t(header->e_shnum) * header->e_shentsize;
}

static bool is_host_library(const char* image) {
    auto* header = reinterpret_cast<const Elf64_Ehdr*>(image);
    return !memcmp(image, ELFMAG, SELFMAG) && header->e_machine == EM_X86_64;
}

// __shared__ became `static`, so LDS is the module's writable statics that live inside a function: mangled _ZZ<function>E...
template <class Visit>
static void for_each_local_static(const Module& module, Visit visit) {
    const char* image = module.image.data();
    auto* header = reinterpret_cast<const Elf64_Ehdr*>(image);
    auto* sections = reinterpret_cast<const Elf64_Shdr*>(image + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        auto* symbols = reinterpret_cast<const Elf64_Sym*>(image + sections[i].sh_offset);
        const char* names = image + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); s++) {
            const char* name = names + symbols[s].st_name;
            int section = symbols[s].st_shndx;
            bool object = ELF64_ST_TYPE(symbols[s].st_info) == STT_OBJECT && section && section < header->e_shnum;
            if (object && !strncmp(name, "_ZZ", 3) && sections[section].sh_type == SHT_NOBITS)
                visit(name, module.load_address + symbols[s].st_value, symbols[s].st_size);
        }
    }
}

static void find_static_lds(const Module& module, Kernel& kernel, const std::vector<std::string>& all_owners) {
    Dl_info info = {};
    dladdr(kernel.entry->address, &info);
    std::string symbol = info.dli_sname ? info.dli_sname : kernel.name;
    auto prefix_of = [](const std::string& symbol) {
        return symbol.rfind("_Z", 0) == 0 ? "_ZZ" + symbol.substr(2) + "E" : format("_ZZ%zu%sE", symbol.size(), symbol.c_str());
    };
    std::string own = prefix_of(symbol);
    for_each_local_static(module, [&](const char* name, char* base, size_t size) {
        bool mine = !strncmp(name, own.c_str(), own.size());
        bool others = std::any_of(all_owners.begin(), all_owners.end(), [&](const std::string& owner) {
            std::string prefix = prefix_of(owner);
            return !strncmp(name, prefix.c_str(), prefix.size());
        });
        if (!mine && others) return; // of another kernel; of a device function: counted for every kernel
        kernel.static_lds.push_back({base, size});
        kernel.static_lds_bytes += size;
    });
}

static hipError_t load(Module** out, std::string image) {
    if (!is_host_library(image.data()))
        return fail(hipErrorInvalidImage, "AMD machine code cannot run on the simulator, only what its own hiprtc compiled");
    auto module = std::make_shared<Module>();
    module->image = std::move(image);
    // A name of its own for each load: the loader takes a name that it knows for the library that it has.
    std::string path = (std::filesystem::temp_directory_path() / "hipsim-module-XXXXXX").string();
    module->file = mkstemp(path.data());
    ssize_t written = write(module->file, module->image.data(), module->image.size());
    module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (under_address_sanitizer())
        module->path = path; // its reports find lines by the file's name
    else
        unlink(path.c_str());
    if (written != ssize_t(module->image.size())) return fail(hipErrorOutOfMemory, "no room for the module in the temporary folder");
    if (!module->library) return fail(hipErrorInvalidImage, dlerror());
    auto* entry = static_cast<const hipsim_entry* const*>(dlsym(module->library, "hipsim_entries"));
    auto* target = static_cast<const char*>(dlsym(module->library, "hipsim_target"));
    if (!entry || !target) return fail(hipErrorInvalidImage, "not compiled by the simulator's hiprtc");
    if (!runs_code_for(module->device, target))
        return fail(hipErrorNoBinaryForGpu, format("code for %s, on device %d, which is %s", target, module->device, arch(module->device).name));
    Dl_info info;
    dladdr(entry, &info);
    module->load_address = static_cast<char*>(info.dli_fbase);
    std::vector<std::string> owners;
    for (auto* e = entry; *e; e++)
        if ((*e)->call && dladdr((*e)->address, &info) && info.dli_sname) owners.push_back(info.dli_sname);
    for (; *entry; entry++) {
        Kernel kernel{(*entry)->name, *entry, module.get(), {}, 0};
        if (kernel.entry->call) find_static_lds(*module, kernel, owners);
        module->kernels[kernel.name] = kernel;
    }
    *out = module.get();
    modules[*out] = module;
    return hipSuccess;
}

// ROCm's runtime ends the process where the current device is not the module's.
static hipError_t check_module(const Module* module) {
    if (!modules.count(const_cast<Module*>(module))) return fail(hipErrorInvalidHandle, "not a loaded module");
    if (module->device == current_device()) return hipSuccess;
    return fail(hipErrorInvalidHandle, format("a module of device %d while device %d is current", module->device, current_device()));
}

static Kernel* find_kernel(Module* module, const char* name) {
    auto found = module->kernels.find(name);
    if (found != module->kernels.end()) return &found->second;
    void* address = dlsym(module->library, name); // a mangled name
    for (auto& [_, kernel] : module->kernels)
        if (address && kernel.entry->address == address) return &kernel;
    return nullptr;
}

std::string source_line(const void* program_counter) {
    for (auto& [_, module] : modules) {
        Dl_info info;
        if (!dladdr(program_counter, &info) || info.dli_fbase != module->load_address) continue;
        size_t offset = static_cast<const char*>(program_counter) - module->load_address;
        std::string command = format("env -u LD_PRELOAD addr2line -s -e /proc/%d/fd/%d 0x%zx", getpid(), module->file, offset);
        FILE* pipe = popen(command.c_str(), "r");
        char line[256] = "";
        if (!fgets(line, sizeof line, pipe)) line[0] = 0;
        pclose(pipe);
        line[strcspn(line, " \n")] = 0;
        return line[0] == '?' ? "" : line;
    }
    return "";
}

static hipError_t check_launch(const Kernel& kernel, hipsim_dim3 grid, hipsim_dim3 block, size_t dynamic_lds, const Stream* stream) {
    const char* name = kernel.name.c_str();
    uint64_t count = uint64_t(block.x) * block.y * block.z;
    if (!count || !grid.x || !grid.y || !grid.z)
        return fail(hipErrorInvalidConfiguration, format("kernel %s: an empty grid or block", name));
    if (count > max_threads || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535)
        return fail(hipErrorInvalidConfiguration, format("kernel %s: block of %lu threads, grid (%u,%u,%u); the limits are %d threads and (2147483647,65535,65535)",
                                                         name, count, grid.x, grid.y, grid.z, max_threads));
    if (count > kernel.entry->max_threads)
        return fail(hipErrorLaunchFailure, format("kernel %s: block of %lu threads, its __launch_bounds__ allow %u", name, count, kernel.entry->max_threads));
    if (kernel.static_lds_bytes + dynamic_lds > size_t(lds_bytes))
        return fail(hipErrorOutOfMemory, format("kernel %s: %zu bytes of LDS and %zu dynamic; the limit is %d", name, kernel.static_lds_bytes, dynamic_lds, lds_bytes));
    if (stream->device != current_device())
        return fail(hipErrorInvalidHandle, format("kernel %s: a stream of device %d while device %d is current", name, stream->device, current_device()));
    if (stream->device != kernel.module->device)
        return fail(hipErrorInvalidHandle, format("kernel %s: loaded on device %d, launched on device %d", name, kernel.module->device, stream->device));
    return strict_stream_check(stream, format("kernel %s", name));
}

} // namespace hipsim

using namespace hipsim;

HIPSIM_API hipError_t hipModuleLoadData(Module** out, const void* image) {
    Guard guard(state_mutex);
    auto* bytes = static_cast<const char*>(image);
    return load(out, std::string(bytes, is_host_library(bytes) ? elf_size(bytes) : 16));
}

HIPSIM_API hipError_t hipModuleLoad(Module** out, const char* path) {
    Guard guard(state_mutex);
    std::ifstream file(path, std::ios::binary);
    if (!file) return fail(hipErrorFileNotFound, path);
    std::string image(std::istreambuf_iterator<char>(file), {});
    if (image.size() < sizeof(Elf64_Ehdr)) return fail(hipErrorInvalidImage, path);
    return load(out, image);
}

HIPSIM_API hipError_t hipModuleUnload(Module* module) {
    Guard guard(state_mutex);
    if (!modules.count(module)) return fail(hipErrorInvalidHandle, "not a loaded module");
    for (auto& [_, kernel] : module->kernels) functions.erase(&kernel);
    modules.erase(module); // queued launches keep it alive
    return hipSuccess;
}

HIPSIM_API hipError_t hipModuleGetFunction(Kernel** out, Module* module, const char* name) {
    Guard guard(state_mutex);
    if (hipError_t error = check_module(module)) return error;
    *out = find_kernel(module, name);
    if (!*out || !(*out)->entry->call) return fail(hipErrorNotFound, format("kernel %s", name));
    functions.insert(*out);
    return hipSuccess;
}

HIPSIM_API hipError_t hipModuleGetGlobal(void** address, size_t* size, Module* module, const char* name) {
    Guard guard(state_mutex);
    if (hipError_t error = check_module(module)) return error;
    Dl_info info;
    const Elf64_Sym* symbol = nullptr;
    auto found = module->kernels.find(name);
    *address = found != module->kernels.end() ? found->second.entry->address : dlsym(module->library, name);
    if (!*address || !dladdr1(*address, &info, (void**)&symbol, RTLD_DL_SYMENT) || !symbol)
        return fail(hipErrorNotFound, format("variable %s", name));
    *size = symbol->st_size;
    adopt_variable(*address, *size);
    module->variables_end = std::max(module->variables_end, static_cast<char*>(*address) + *size);
    return hipSuccess;
}

HIPSIM_API hipError_t hipFuncGetAttribute(int* value, int attribute, const Kernel* kernel) {
    Guard guard(state_mutex);
    if (!functions.count(kernel)) return fail(hipErrorInvalidDeviceFunction, "not a kernel");
    switch (attribute) {
        case HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = kernel->entry->max_threads; break;
        case HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = kernel->static_lds_bytes; break;
        case HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = lds_bytes - kernel->static_lds_bytes; break;
        default: *value = 0; // registers and scratch are the real compiler's to tell
    }
    return hipSuccess;
}

HIPSIM_API hipError_t hipModuleLaunchKernel(Kernel* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                            unsigned bz, unsigned dynamic_lds, hipStream_t handle, void** arguments, void** extra) {
    RESOLVE_STREAM(stream, handle);
    if (!functions.count(kernel)) return fail(hipErrorInvalidHandle, "not a kernel");
    if (extra) return fail(hipErrorNotSupported, "kernel arguments in one buffer");
    hipsim_dim3 grid{gx, gy, gz}, block{bx, by, bz};
    if ((error = check_launch(*kernel, grid, block, dynamic_lds, stream))) return error;

    auto launch = std::make_shared<Launch>(Launch{kernel, stream->device, grid, block, dynamic_lds, {}, {}});
    const hipsim_entry& entry = *kernel->entry;
    constexpr size_t alignment = 64;
    size_t bytes = alignment;
    for (unsigned i = 0; i < entry.arguments; i++) bytes += (entry.argument_sizes[i] + alignment - 1) / alignment * alignment;
    launch->argument_bytes.resize(bytes);
    auto next = (reinterpret_cast<uintptr_t>(launch->argument_bytes.data()) + alignment - 1) / alignment * alignment;
    for (unsigned i = 0; i < entry.arguments; i++) {
        launch->arguments.push_back(memcpy(reinterpret_cast<void*>(next), arguments[i], entry.argument_sizes[i]));
        next += (entry.argument_sizes[i] + alignment - 1) / alignment * alignment;
    }
    return submit(stream, {"kernel " + kernel->name, [launch, keep = modules[kernel->module]] { run_kernel(*launch); }, false, true});
}

HIPSIM_API hipError_t hipOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const Kernel* kernel, int block_size, size_t dynamic_lds) {
    Guard guard(state_mutex);
    if (!functions.count(kernel)) return fail(hipErrorInvalidDeviceFunction, "not a kernel");
    if (block_size <= 0) return fail(hipErrorInvalidValue, format("block size %d", block_size));
    size_t lds = kernel->static_lds_bytes + dynamic_lds;
    *blocks = threads_per_unit / block_size;
    if (lds) *blocks = std::min<int>(*blocks, lds_bytes / lds);
    if (block_size > int(kernel->entry->max_threads)) *blocks = 0;
    return hipSuccess;
}

HIPSIM_API hipError_t hipOccupancyMaxPotentialBlockSize(int* grid_size, int* block_size, const Kernel* kernel, size_t, int limit) {
    Guard guard(state_mutex);
    if (!functions.count(kernel)) return fail(hipErrorInvalidDeviceFunction, "not a kernel");
    *block_size = kernel->entry->max_threads;
    if (limit) *block_size = std::min(*block_size, limit);
    *grid_size = arch(current_device()).compute_units * (threads_per_unit / *block_size);
    return hipSuccess;
}

// ---- kernels that the wheel brings as compiled AMD code (thrust, hipCUB, the random generators)

static std::map<const void*, std::string> precompiled;

HIPSIM_API void** __hipRegisterFatBinary(const void*) {
    static void* handle;
    return &handle;
}
HIPSIM_API void __hipUnregisterFatBinary(void**) {}
HIPSIM_API void __hipRegisterFunction(void**, const void* host, char*, const char* name, unsigned, void*, void*, void*, void*, int*) {
    precompiled[host] = name;
}

// A triple-chevron launch pushes its configuration, and the host-side stub of the kernel pops it.
static thread_local std::vector<std::tuple<hipsim_dim3, hipsim_dim3, size_t, hipStream_t>> configurations;
HIPSIM_API hipError_t __hipPushCallConfiguration(hipsim_dim3 grid, hipsim_dim3 block, size_t lds, hipStream_t stream) {
    configurations.emplace_back(grid, block, lds, stream);
    return hipSuccess;
}
HIPSIM_API hipError_t __hipPopCallConfiguration(hipsim_dim3* grid, hipsim_dim3* block, size_t* lds, hipStream_t* stream) {
    std::tie(*grid, *block, *lds, *stream) = configurations.back();
    configurations.pop_back();
    return hipSuccess;
}

HIPSIM_API hipError_t hipLaunchKernel(const void* host, hipsim_dim3, hipsim_dim3, void**, size_t, hipStream_t) {
    Guard guard(state_mutex);
    std::string message = "kernel " + precompiled[host] + " is AMD machine code compiled into the wheel";
    report_fault(message);
    return fail(hipErrorNotSupported, message);
}
