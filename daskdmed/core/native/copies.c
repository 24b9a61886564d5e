/* Many boxes of pixels to their places in one call, for `daskdmed.core.native`.

   A box of 224 x 224 pixels is copied in 20 to 40 microseconds; NumPy gives the interpreter's lock
   away for each, and two threads that copy among others that decode spend more time on having it
   back than on copying. Nothing is checked here: boxes and places do not overlap, and each begins
   and ends inside its array. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

/* Addresses; lines of so many bytes, in rows and planes that begin so many bytes apart. */
typedef struct {
  int64_t source, target, planes, source_plane, target_plane, rows, source_row, target_row, line;
} Copy;

EXPORTED void daskdmed_copies_1(const Copy *copies, int64_t count) {
  for (const Copy *copy = copies; copy < copies + count; copy++) {
    for (int64_t plane = 0; plane < copy->planes; plane++) {
      const char *from = (const char *)(intptr_t)copy->source + plane * copy->source_plane;
      char *to = (char *)(intptr_t)copy->target + plane * copy->target_plane;
      for (int64_t row = 0; row < copy->rows; row++)
        memcpy(to + row * copy->target_row, from + row * copy->source_row, (size_t)copy->line);
    }
  }
}
