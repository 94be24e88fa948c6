// Runs what `mbv3fast export model.pt2` wrote: run_package MODEL.pt2 IMAGES.pt OUTPUT.pt
//
// IMAGES.pt is one tensor, as torch.save writes it; OUTPUT.pt becomes the first output, which torch.load reads.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

torch::Tensor load(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + ": can't be read");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::pickle_load(bytes).toTensor();
}

void save(const torch::Tensor& tensor, const char* path) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) {
    throw std::runtime_error(std::string(path) + ": can't be written");
  }
}

void run(const char* package, const char* input, const char* output_path) {
  const c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader model(package);
  const std::string device = model.get_metadata().at("AOTI_DEVICE_KEY");  // cpu, or cuda, where it takes its input
  const torch::Tensor images = load(input).to(device);
  model.run({images}).at(0).cpu();  // the first run sets things up; a copy waits for a GPU

  const auto begin = std::chrono::steady_clock::now();
  const torch::Tensor output = model.run({images}).at(0).cpu();
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;

  std::cout << output.sizes() << " in " << elapsed.count() << " ms\n";
  save(output, output_path);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "run_package MODEL.pt2 IMAGES.pt OUTPUT.pt\n";
    return 2;
  }
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);  // else it takes any input for what it was made for
  try {
    run(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
