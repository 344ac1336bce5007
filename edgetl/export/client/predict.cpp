// Label images with this bundle: ./predict fp32.onnx IMAGE...   Needs ONNX Runtime and OpenCV's imgcodecs.
//   apt install g++ libopencv-imgcodecs-dev libonnxruntime-dev
//   I="-I/usr/include/opencv4 -I/usr/include/onnxruntime" L="-lonnxruntime -lopencv_imgcodecs -lopencv_core"
//   g++ -std=c++17 -O2 $I predict.cpp -o predict $L
// libonnxruntime-dev needs Debian 13 or newer; elsewhere use a release archive of ONNX Runtime with -I, -L, -Wl,-rpath.
// The input is upright RGB; preprocessing is in the file. OpenCV applies EXIF orientation, except with transparency.
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

// OpenCV fills the missing part of a truncated JPEG with grey, so check for the end marker.
static bool is_truncated_jpeg(const Bytes& file) {
    if (file.size() < 2 || file[0] != 0xFF || file[1] != 0xD8) return false;
    size_t offset = 2;
    while (offset + 4 <= file.size() && file[offset] == 0xFF && file[offset + 1] != 0xDA)
        offset += file[offset + 1] == 0xFF ? 1 : 2 + file[offset + 2] * 256 + file[offset + 3];
    const unsigned char end[] = {0xFF, 0xD9};
    return offset >= file.size() || std::search(file.begin() + offset, file.end(), end, end + 2) == file.end();
}

static Image load_image(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    const Bytes file(std::istreambuf_iterator<char>(stream), {});
    if (file.empty()) throw std::runtime_error("file not found or empty");
    cv::Mat pixels = file[0] == 0xFF ? cv::Mat() : cv::imdecode(file, cv::IMREAD_UNCHANGED);
    if (pixels.channels() != 4) pixels = cv::imdecode(file, cv::IMREAD_COLOR);
    if (pixels.empty() || is_truncated_jpeg(file)) throw std::runtime_error("not a supported image, or truncated");
    if (pixels.depth() == CV_16U) pixels.convertTo(pixels, CV_8U, 1 / 256.0, -127.5 / 256);  // the high byte
    Image image{pixels.rows, pixels.cols, {}};
    image.rgb.reserve(pixels.total() * 3);
    for (int row = 0; row < pixels.rows; row++) {
        const uint8_t* pixel = pixels.ptr<uint8_t>(row);
        for (int column = 0; column < pixels.cols; column++, pixel += pixels.channels()) {
            const int opacity = pixels.channels() == 4 ? pixel[3] : 255;
            for (int i : {2, 1, 0}) image.rgb.push_back((pixel[i] * opacity + 255 * (255 - opacity) + 127) / 255);
        }
    }
    return image;
}

// Parse a JSON list of strings as edgetl writes it: UTF-8, with only control characters as \u00XX.
static std::vector<std::string> parse_strings(const std::string& json) {
    std::vector<std::string> strings;
    bool inside = false;
    for (size_t i = 0; i < json.size(); i++) {
        const bool escaped = inside && json[i] == '\\', quote = json[i] == '"';
        if (escaped) i++;
        const size_t control = escaped ? std::string("bfnrtu").find(json[i]) : std::string::npos;
        if (quote) inside = !inside;
        if (quote && inside) strings.emplace_back();
        if (quote || !inside) continue;
        char character = control < 5 ? "\b\f\n\r\t"[control] : json[i];
        if (control == 5) character = char(std::stoi(json.substr(i + 1, 4), nullptr, 16));
        strings.back() += character;
        if (control == 5) i += 4;
    }
    return strings;
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
        throw std::runtime_error(std::string(arguments[1]) + " does not take photos. Export without --input tensor.");
    const auto labels = parse_strings(metadata(session, "edgetl.labels"));
    Ort::AllocatorWithDefaultOptions allocator;
    const auto name = session.GetInputNameAllocated(0, allocator);
    const char *inputs[] = {name.get()}, *outputs[] = {"probabilities", "unknown_score"};
    size_t output_count = 1;
    for (size_t i = 0; i < session.GetOutputCount(); i++)
        if (std::string(session.GetOutputNameAllocated(i, allocator).get()) == outputs[1]) output_count = 2;
    int status = 0;
    for (int number = 2; number < count; number++) try {
            Image image = load_image(arguments[number]);
            const int64_t shape[] = {1, image.height, image.width, 3};
            const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
            const auto input = Ort::Value::CreateTensor<uint8_t>(memory, image.rgb.data(), image.rgb.size(), shape, 4);
            const auto output = session.Run(Ort::RunOptions(), inputs, &input, 1, outputs, output_count);
            const float* probabilities = output[0].GetTensorData<float>();
            const size_t best = std::max_element(probabilities, probabilities + labels.size()) - probabilities;
            const char* closest = labels.at(best).c_str();
            const float* score = output_count == 2 ? output[1].GetTensorData<float>() : nullptr;
            const char* label = score && *score > 1 ? "unknown" : closest;
            std::printf("%s\t%s\t%.4f", arguments[number], label, probabilities[best]);
            if (score) std::printf("\t%.3f\t%s", *score, closest);
            std::printf("\n");
        } catch (const std::exception& cause) {
            std::fprintf(stderr, "Cannot label %s: %s.\n", arguments[number], cause.what());
            status = 1;
        }
    return status;
} catch (const std::exception& cause) {
    std::fprintf(stderr, "%s\n", cause.what());
    return 1;
}
