// Label images with this bundle: ./predict fp32.onnx IMAGE...   Needs ONNX Runtime and OpenCV's imgcodecs, nothing else.
//
//   apt install g++ libopencv-imgcodecs-dev libonnxruntime-dev
//   I="-I/usr/include/opencv4 -I/usr/include/onnxruntime" L="-lonnxruntime -lopencv_imgcodecs -lopencv_core"
//   g++ -std=c++17 -O2 $I predict.cpp -o predict $L
//
// libonnxruntime-dev is in Debian 13 and newer; elsewhere an archive of ONNX Runtime's releases takes its place, by -I, -L and -Wl,-rpath.
// The file preprocesses by itself and is fed upright RGB pixels. OpenCV turns photos as EXIF says, but none with transparency.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;

struct Image {
    int64_t height, width;
    std::vector<uint8_t> rgb;  // height * width * 3
};

// OpenCV hands out a JPEG that was cut short with grey in place of what is missing: the end of its data must be there.
static bool cut_short(const Bytes& file) {
    if (file.size() < 2 || file[0] != 0xFF || file[1] != 0xD8) return false;
    size_t at = 2;
    while (at + 4 <= file.size() && file[at] == 0xFF && file[at + 1] != 0xDA)
        at += file[at + 1] == 0xFF ? 1 : 2 + file[at + 2] * 256 + file[at + 3];
    const unsigned char end[] = {0xFF, 0xD9};
    return at >= file.size() || std::search(file.begin() + at, file.end(), end, end + 2) == file.end();
}

static Image load_image(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    const Bytes file(std::istreambuf_iterator<char>(stream), {});
    if (file.empty()) throw std::runtime_error("there is no such file, or it is empty");
    cv::Mat pixels = file[0] == 0xFF ? cv::Mat() : cv::imdecode(file, cv::IMREAD_UNCHANGED);
    if (pixels.channels() != 4) pixels = cv::imdecode(file, cv::IMREAD_COLOR);
    if (pixels.empty() || cut_short(file)) throw std::runtime_error("it is not an image that can be decoded, or it is cut short");
    if (pixels.depth() == CV_16U) pixels.convertTo(pixels, CV_8U, 1 / 256.0, -127.5 / 256);  // the high byte
    Image image{pixels.rows, pixels.cols, {}};
    image.rgb.reserve(pixels.total() * 3);
    for (int row = 0; row < pixels.rows; row++) {
        const uint8_t* at = pixels.ptr<uint8_t>(row);
        for (int column = 0; column < pixels.cols; column++, at += pixels.channels()) {
            const int opacity = pixels.channels() == 4 ? at[3] : 255;
            for (int channel : {2, 1, 0}) image.rgb.push_back((at[channel] * opacity + 255 * (255 - opacity) + 127) / 255);
        }
    }
    return image;
}

// The strings of a JSON list as edgetl writes it: UTF-8, and only control characters as \u00XX.
static std::vector<std::string> strings(const std::string& json) {
    std::vector<std::string> found;
    bool inside = false;
    for (size_t at = 0; at < json.size(); at++) {
        const bool escaped = inside && json[at] == '\\', quote = json[at] == '"';
        if (escaped) at++;
        const size_t control = escaped ? std::string("bfnrtu").find(json[at]) : std::string::npos;
        if (quote) inside = !inside;
        if (quote && inside) found.emplace_back();
        if (quote || !inside) continue;
        found.back() += control == 5 ? char(std::stoi(json.substr(at + 1, 4), nullptr, 16)) : control < 5 ? "\b\f\n\r\t"[control] : json[at];
        if (control == 5) at += 4;
    }
    return found;
}

static std::string metadata(const Ort::Session& session, const char* key) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto value = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
    return value ? value.get() : "";
}

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("Usage: predict FILE.onnx IMAGE...");
    Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "predict");
    environment.DisableTelemetryEvents();
    Ort::Session session(environment, arguments[1], Ort::SessionOptions());
    if (metadata(session, "edgetl.input") != "\"image\"")
        throw std::runtime_error(std::string(arguments[1]) + " does not take photos: export it with `edgetl export`, without --input tensor.");
    const auto labels = strings(metadata(session, "edgetl.labels"));
    Ort::AllocatorWithDefaultOptions allocator;
    const auto name = session.GetInputNameAllocated(0, allocator);
    const char *inputs[] = {name.get()}, *outputs[] = {"probabilities"};
    int status = 0;
    for (int number = 2; number < count; number++) try {
            Image image = load_image(arguments[number]);
            const int64_t shape[] = {1, image.height, image.width, 3};
            const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
            const auto input = Ort::Value::CreateTensor<uint8_t>(memory, image.rgb.data(), image.rgb.size(), shape, 4);
            const auto output = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, 1);
            const float* probabilities = output[0].GetTensorData<float>();
            const size_t best = std::max_element(probabilities, probabilities + labels.size()) - probabilities;
            std::printf("%s\t%s\t%.4f\n", arguments[number], labels.at(best).c_str(), probabilities[best]);
        } catch (const std::exception& cause) {
            std::fprintf(stderr, "%s is not labelled: %s.\n", arguments[number], cause.what());
            status = 1;
        }
    return status;
} catch (const std::exception& cause) {
    std::fprintf(stderr, "%s\n", cause.what());
    return 1;
}
