/* Many JPEG tiles in one call, for `daskdmed.core.native`.

   A tile of 256 pixels takes about 0.2 ms to decode. Called one by one, each of them gives the
   interpreter's lock away and has to wait for it again, and two threads that read spend up to
   half as much time on that as on decoding. This loop is called without the lock, once for all.

   It knows nothing of files, of Python, or of TurboJPEG but the two functions that it is given,
   and checks nothing that its caller has checked: that every stream begins with the header of
   the picture that `rows` and `width` describe, and that pieces lie inside `out`. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

enum { SAMPLES = 3, PIXEL_FORMAT_RGB = 0 };

/* tjregion of turbojpeg.h */
typedef struct {
  int x, y, w, h;
} Region;
typedef int (*Crop)(void *, Region);
typedef int (*Decompress)(void *, const unsigned char *, size_t, unsigned char *, int, int);

/* A stream is `before`, then the tile's bytes but for the first `skip`, then `behind`. */
typedef struct {
  const unsigned char *before;
  size_t before_length;
  size_t skip;
  const unsigned char *behind;
  size_t behind_length;
} Frame;

/* What all tiles are: their extent, columns that a block of samples has, of how few columns no
   colours are interpolated, and of how many of 8 pixels a part is worth being decoded alone. */
typedef struct {
  int rows, width, block, few, worth;
} Picture;

/* Pixels of a tile that are wanted: first and one past the last row, and column. */
typedef struct {
  int32_t top, bottom, left, right;
} Needed;

/* Where in `out` pixels of a tile go. */
typedef struct {
  int64_t offset, top, left, bottom, right;
} Piece;

static size_t join(const Frame *frame, const unsigned char *data, size_t length,
                   unsigned char *stream) {
  size_t at = frame->before_length;
  memcpy(stream, frame->before, at);
  memcpy(stream + at, data + frame->skip, length - frame->skip);
  at += length - frame->skip;
  memcpy(stream + at, frame->behind, frame->behind_length);
  return at + frame->behind_length;
}

/* The part to be decoded for the pixels that are needed; see `columns_of` of
   `daskdmed.images.turbojpeg`. All of the tile where little of it could be left out. */
static Region part(const Picture *picture, const Needed *needed) {
  Region whole = {0, 0, picture->width, picture->rows}, region;
  int64_t wanted = (int64_t)(needed->bottom - needed->top) * (needed->right - needed->left);
  int first = needed->left - 1, last = needed->right + 1;
  if (8 * wanted > (int64_t)picture->worth * picture->rows * picture->width) return whole;
  if (first > picture->width - picture->few) first = picture->width - picture->few;
  if (first < 0) first = 0;
  first -= first % picture->block;
  if (last < first + picture->few) last = first + picture->few;
  if (last > picture->width) last = picture->width;
  region.x = first;
  region.y = needed->top;
  region.w = last - first;
  region.h = needed->bottom - needed->top;
  return region;
}

static int covers(const Region *region, const Piece *piece) {
  return piece->left == region->x && piece->top == region->y &&
         piece->right - piece->left == region->w && piece->bottom - piece->top == region->h;
}

static void copy(const unsigned char *from, ptrdiff_t from_pitch, const Region *region,
                 unsigned char *out, ptrdiff_t pitch, const Piece *piece) {
  size_t line = SAMPLES * (size_t)(piece->right - piece->left);
  int64_t row;
  from += (piece->top - region->y) * from_pitch + SAMPLES * (piece->left - region->x);
  out += piece->offset;
  for (row = piece->top; row < piece->bottom; row++, from += from_pitch, out += pitch)
    memcpy(out, from, line);
}

/* Decode `count` tiles, and put what is wanted of each to its places: pieces of tile i are those
   from ends[i - 1] to ends[i]. A tile of which one piece is all that is decoded goes there at
   once where `in_place` says so, others by `scratch`, which holds a whole tile. A stream of NULL
   is left out, and so is one with any fault; `done` has 1 for each of the others. */
EXPORTED int daskdmed_tiles_1(Crop crop, Decompress decompress, void *decompressor,
                              const Frame *frame, const Picture *picture, int count,
                              const unsigned char *const *tiles, const size_t *lengths,
                              const Needed *needed, const int32_t *ends, const Piece *pieces,
                              unsigned char *scratch, unsigned char *out, ptrdiff_t pitch,
                              int in_place, unsigned char *done) {
  ptrdiff_t line = SAMPLES * (ptrdiff_t)picture->width;
  size_t most = 0;
  unsigned char *stream;
  int i, at = 0, decoded = 0;
  memset(done, 0, (size_t)count);
  for (i = 0; i < count; i++)
    if (tiles[i] && lengths[i] > most) most = lengths[i];
  stream = malloc(frame->before_length + most + frame->behind_length);
  if (!stream) return 0;
  for (i = 0; i < count; at = ends[i], i++) {
    Region region, all = {0, 0, 0, 0};
    unsigned char *target = scratch;
    ptrdiff_t target_pitch = line;
    int direct, whole;
    if (!tiles[i] || lengths[i] < frame->skip) continue;
    region = part(picture, &needed[i]);
    whole = region.w == picture->width && region.h == picture->rows;
    direct = in_place && ends[i] - at == 1 && covers(&region, &pieces[at]);
    if (direct) {
      target = out + pieces[at].offset;
      target_pitch = pitch;
    }
    if (crop(decompressor, whole ? all : region) ||
        decompress(decompressor, stream, join(frame, tiles[i], lengths[i], stream), target,
                   (int)target_pitch, PIXEL_FORMAT_RGB))
      continue;
    for (; !direct && at < ends[i]; at++) copy(scratch, line, &region, out, pitch, &pieces[at]);
    done[i] = 1;
    decoded++;
  }
  free(stream);
  return decoded;
}
