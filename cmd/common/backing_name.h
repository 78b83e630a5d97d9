/*
 * How the header of an overlay should name its backing file.
 */
#ifndef CMD_COMMON_BACKING_NAME_H
#define CMD_COMMON_BACKING_NAME_H

/*
 * `backing` (a path from the current folder) as seen from the overlay's folder: by name alone when
 * both lie in one folder, so that they can be moved together; else by its whole path. Names that
 * are no paths stay as they are. malloc()ed.
 */
char *backing_name_for_header(const char *overlay, const char *backing);

#endif
