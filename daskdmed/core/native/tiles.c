/* Many JPEG tiles in one call, for `daskdmed.core.native`.

   A tile of 256 pixels takes about 0.2 ms to decode. Called one by one, each of them gives the
   interpreter's lock away and has to wait for it again, and two threads that read spend up to
   half as much time on that as on decoding. This loop is called without the lock, once for all.

   It knows nothing of Python, nor of TurboJPEG but the two functions that it is given, and checks
   nothing that its caller has checked: that pieces lie inside `out`, and of tiles in memory that
   each begins with the header of the picture that `rows` and `width` describe. */

#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORTED __declspec(dllexport)
#else
#include <unistd.h>
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

/* Where the tiles' bytes are: in memory, or in an open file, where each has to begin with `head` and
   end with `end`. */
typedef struct {
  const unsigned char *const *tiles;
  int file;
  const int64_t *offsets;
  const unsigned char *head;
  size_t head_length;
  const unsigned char *end;
  size_t end_length;
} Source;

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

/* The tile's bytes to `data`; whether they are there, and may be decoded. */
static int fetch(const Source *source, int number, size_t length, unsigned char *data) {
  if (source->tiles) {
    if (!source->tiles[number]) return 0;
    memcpy(data, source->tiles[number], length);
    return 1;
  }
#ifdef _WIN32
  return 0;
#else
  if (source->offsets[number] <= 0 || length < source->head_length + source->end_length) return 0;
  return pread(source->file, data, length, (off_t)source->offsets[number]) == (ssize_t)length &&
         !memcmp(data, source->head, source->head_length) &&
         !memcmp(data + length - source->end_length, source->end, source->end_length);
#endif
}

/* The stream of a tile, and its length; 0 where it has none. `before` is no shorter than what is
   skipped, whose place it takes. */
static size_t join(const Frame *frame, const Source *source, int number, int64_t length,
                   unsigned char *stream) {
  size_t at = frame->before_length - frame->skip;
  if (length <= 0 || (size_t)length < frame->skip) return 0;
  if (!fetch(source, number, (size_t)length, stream + at)) return 0;
  memcpy(stream, frame->before, frame->before_length);
  at += (size_t)length;
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
   once where `in_place` says so, others by `scratch`, which holds a whole tile. A tile of NULL
   is left out, and so is one with any fault; `done` has 1 for each of the others. */
EXPORTED int daskdmed_tiles_2(Crop crop, Decompress decompress, void *decompressor,
                              const Frame *frame, const Picture *picture, int count,
                              const Source *source, const int64_t *lengths,
                              const Needed *needed, const int32_t *ends, const Piece *pieces,
                              unsigned char *scratch, unsigned char *out, ptrdiff_t pitch,
                              int in_place, unsigned char *done) {
  ptrdiff_t line = SAMPLES * (ptrdiff_t)picture->width;
  int64_t most = 0;
  unsigned char *stream;
  int i, at = 0, decoded = 0;
  memset(done, 0, (size_t)count);
  for (i = 0; i < count; i++)
    if (lengths[i] > most) most = lengths[i];
  stream = malloc(frame->before_length + (size_t)most + frame->behind_length);
  if (!stream) return 0;
  for (i = 0; i < count; at = ends[i], i++) {
    Region region, all = {0, 0, 0, 0};
    unsigned char *target = scratch;
    ptrdiff_t target_pitch = line;
    int direct, whole;
    size_t length = join(frame, source, i, lengths[i], stream);
    if (!length) continue;
    region = part(picture, &needed[i]);
    whole = region.w == picture->width && region.h == picture->rows;
    direct = in_place && ends[i] - at == 1 && covers(&region, &pieces[at]);
    if (direct) {
      target = out + pieces[at].offset;
      target_pitch = pitch;
    }
    if (crop(decompressor, whole ? all : region) ||
        decompress(decompressor, stream, length, target, (int)target_pitch, PIXEL_FORMAT_RGB))
      continue;
    for (; !direct && at < ends[i]; at++) copy(scratch, line, &region, out, pitch, &pieces[at]);
    done[i] = 1;
    decoded++;
  }
  free(stream);
  return decoded;
}
