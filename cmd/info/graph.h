/* SPDX-License-Identifier: MIT */
/* The picture of info --graph: all nodes of an image, as text or for Graphviz. */
#ifndef CMD_INFO_GRAPH_H
#define CMD_INFO_GRAPH_H

#include "cmd/common/image.h"

enum graph_form { GRAPH_NONE, GRAPH_TEXT, GRAPH_DOT };

/* Parses the text of --graph. Reports and returns an exit status if it is neither text nor dot. */
int graph_form_parse(const char *text, enum graph_form *form);

/* Opens the whole graph of `name` past all locks, and prints it. Returns an exit status. */
int print_graph(const struct image_args *args, const char *name, enum graph_form form);

#endif
