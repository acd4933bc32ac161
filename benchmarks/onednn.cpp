/* Batch normalization by oneDNN's own primitive, in a layout of its own. All
 * buffers are made beforehand, so that a run allocates nothing.
 */
#include <cstring>
#include <unordered_map>
#include <vector>

#include <dnnl.hpp>

using namespace dnnl;
using tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;

namespace {

struct Program {
    engine cpu{engine::kind::cpu, 0};
    stream calls{cpu};
    memory::desc plain, channels;
    Arguments arguments, gradients;
    primitive forward, backward;
    bool training;
    float alpha, correction;
    std::vector<float> mean, variance;  // Running averages.

    float* data(int name) {
        return static_cast<float*>(arguments.at(name).get_data_handle());
    }
};

memory from(Program& program, const float* values, const memory::desc& there,
            const memory::desc& here) {
    memory result(here, program.cpu);
    memory source(there, program.cpu, const_cast<float*>(values));
    reorder(source, result).execute(program.calls, source, result);
    program.calls.wait();
    return result;
}

void add_backward(Program& program, const memory::desc& layout, float epsilon,
                  normalization_flags flags, const float* dy,
                  const batch_normalization_forward::primitive_desc& forward) {
    batch_normalization_backward::primitive_desc made(
        program.cpu, prop_kind::backward, layout, layout, layout, epsilon,
        flags, forward);
    program.backward = batch_normalization_backward(made);
    program.gradients = program.arguments;
    program.gradients.erase(DNNL_ARG_DST);
    program.gradients.erase(DNNL_ARG_SHIFT);
    program.gradients[DNNL_ARG_DIFF_DST] = from(
        program, dy, program.plain, layout);
    program.gradients[DNNL_ARG_DIFF_SRC] = memory(layout, program.cpu);
    for (int name : {DNNL_ARG_DIFF_SCALE, DNNL_ARG_DIFF_SHIFT})
        program.gradients[name] = memory(program.channels, program.cpu);
}

}

extern "C" {

/* `arrays`: x, dy, gamma, beta, mean and variance. `strides` are those of x
 * and dy, and `layout` says which one oneDNN gets. */
Program* make(int dimensions, const long* shape, const long* strides,
              int layout, bool training, bool rectify, float epsilon,
              float alpha, const float** arrays) try {
    const tag tags[] = {tag::nchw, tag::nhwc, tag::nChw8c, tag::nChw16c};
    memory::dims sizes(shape, shape + dimensions);
    auto* program = new Program;
    program->training = training;
    program->alpha = alpha;
    program->plain = {sizes, memory::data_type::f32,
                      memory::dims(strides, strides + dimensions)};
    program->channels = {{sizes[1]}, memory::data_type::f32, tag::a};
    memory::desc own(sizes, memory::data_type::f32,
                     dimensions == 2 ? tag::nc : tags[layout]);
    auto flags = normalization_flags::use_scale
        | normalization_flags::use_shift;
    if (rectify)
        flags |= normalization_flags::fuse_norm_relu;
    batch_normalization_forward::primitive_desc made(
        program->cpu, training ? prop_kind::forward_training
                               : prop_kind::forward_inference, own, own,
        epsilon, training ? flags
                          : flags | normalization_flags::use_global_stats);
    program->forward = batch_normalization_forward(made);
    auto& arguments = program->arguments;
    arguments[DNNL_ARG_SRC] = from(*program, arrays[0], program->plain, own);
    arguments[DNNL_ARG_DST] = memory(own, program->cpu);
    const int names[] = {DNNL_ARG_SCALE, DNNL_ARG_SHIFT, DNNL_ARG_MEAN,
                         DNNL_ARG_VARIANCE};
    for (int i = 0; i < 4; ++i)
        arguments[names[i]] = from(*program, arrays[2 + i],
                                   program->channels, program->channels);
    if (!training)
        return program;
    if (rectify)
        arguments[DNNL_ARG_WORKSPACE] = memory(made.workspace_desc(),
                                               program->cpu);
    float count = 1;
    for (int i = 0; i < dimensions; ++i)
        count *= i == 1 ? 1 : sizes[i];
    program->correction = count / (count - 1);
    program->mean.assign(sizes[1], 0.f);
    program->variance.assign(sizes[1], 1.f);
    add_backward(*program, own, epsilon, flags, arrays[1], made);
    return program;
} catch (const error&) {
    return nullptr;
}

void run(Program* program) {
    program->forward.execute(program->calls, program->arguments);
    if (program->training) {
        program->backward.execute(program->calls, program->gradients);
        const float* mean = program->data(DNNL_ARG_MEAN);
        const float* variance = program->data(DNNL_ARG_VARIANCE);
        const float alpha = program->alpha;
        for (size_t c = 0; c < program->mean.size(); ++c) {
            program->mean[c] += alpha * (mean[c] - program->mean[c]);
            program->variance[c] += alpha * (
                variance[c] * program->correction - program->variance[c]);
        }
    }
    program->calls.wait();
}

/* `arrays`: y, dx, dgamma, dbeta and the running averages. */
void read(Program* program, float** arrays) {
    auto copy = [=](memory& source, const memory::desc& there, float* to) {
        memory result(there, program->cpu, to);
        reorder(source, result).execute(program->calls, source, result);
        program->calls.wait();
    };
    copy(program->arguments[DNNL_ARG_DST], program->plain, arrays[0]);
    if (!program->training)
        return;
    auto& gradients = program->gradients;
    copy(gradients[DNNL_ARG_DIFF_SRC], program->plain, arrays[1]);
    copy(gradients[DNNL_ARG_DIFF_SCALE], program->channels, arrays[2]);
    copy(gradients[DNNL_ARG_DIFF_SHIFT], program->channels, arrays[3]);
    const size_t bytes = program->mean.size() * sizeof(float);
    std::memcpy(arrays[4], program->mean.data(), bytes);
    std::memcpy(arrays[5], program->variance.data(), bytes);
}

}
