// Runs what `mbv3fast export model.pt2` wrote: run_package MODEL.pt2 IMAGES.pt OUTPUT.pt
//
// IMAGES.pt is one tensor, as torch.save writes it; OUTPUT.pt becomes the first output, which torch.load reads.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

namespace {

torch::Tensor load(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  return torch::pickle_load(bytes).toTensor();
}

void save(const torch::Tensor& tensor, const char* path) {
  const std::vector<char> bytes = torch::pickle_save(tensor);
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "run_package MODEL.pt2 IMAGES.pt OUTPUT.pt\n";
    return 2;
  }
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);  // else it takes any input for what it was made for
  const c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const torch::Tensor images = load(arguments[2]);
  std::vector<torch::Tensor> outputs = model.run({images});  // the first run sets things up

  const auto begin = std::chrono::steady_clock::now();
  outputs = model.run({images});
  const torch::Tensor output = outputs.at(0).cpu();  // which waits for a GPU
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;

  std::cout << output.sizes() << " in " << elapsed.count() << " ms\n";
  save(output, arguments[3]);
}
