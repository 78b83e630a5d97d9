/* SPDX-License-Identifier: MIT */
/*
 * Files that have a temporary name until they get theirs: a run that has to end at once removes
 * them (blk_out_of_memory()). Files without a name, the common case, go by themselves.
 */
#ifndef BLOCKCORE_BASE_TEMPORARIES_H
#define BLOCKCORE_BASE_TEMPORARIES_H

/* `name`, in the directory `directory_fd`, stays the caller's; both last until _forget(). */
void blk_temporary_note(int directory_fd, const char *name);

/* The name was given to something else, or is gone. Forgetting what was not noted does nothing. */
void blk_temporary_forget(const char *name);

/* Removes what is noted. Needs no memory. */
void blk_temporaries_remove(void);

#endif
