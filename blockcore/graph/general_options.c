/* SPDX-License-Identifier: MIT */
/* Reading discard and detect-zeroes, which depend on each other. */
#include "blockcore/graph/general_options.h"

#include <errno.h>
#include <string.h>

int blk_discard_parse(const char *text, bool *unmap, struct blk_error *err)
{
    *unmap = strcmp(text, "unmap") == 0 || strcmp(text, "on") == 0;
    if (*unmap || strcmp(text, "ignore") == 0 || strcmp(text, "off") == 0)
        return 0;
    return blk_fail_why(err, EINVAL, "it is none of unmap, on, ignore, off",
                        "Invalid discard option: %s", text);
}

static int parse_detect_zeroes(const char *text, enum blk_detect_zeroes *detect,
                               struct blk_error *err)
{
    static const char *const names[] = {
        [BLK_DETECT_OFF] = "off",
        [BLK_DETECT_ON] = "on",
        [BLK_DETECT_UNMAP] = "unmap",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            *detect = (enum blk_detect_zeroes)i;
            return 0;
        }
    }
    return blk_fail_why(err, EINVAL, "it is none of off, on, unmap",
                        "option 'detect-zeroes' has the value '%s'", text);
}

int blk_general_options_read(struct blk_options *options, struct blk_general_options *general,
                             struct blk_error *err)
{
    const char *discard = blk_options_get(options, "discard");
    const char *detect = blk_options_get(options, "detect-zeroes");
    int ret = discard ? blk_discard_parse(discard, &general->unmap, err) : 0;

    if (ret == 0 && detect)
        ret = parse_detect_zeroes(detect, &general->detect_zeroes, err);
    if (ret < 0)
        return ret;
    if (general->detect_zeroes == BLK_DETECT_UNMAP && !general->unmap)
        return blk_fail_why(err, EINVAL,
                            "setting detect-zeroes to unmap is not allowed without setting "
                            "discard operation to unmap",
                            "option 'detect-zeroes' has the value 'unmap'");
    return 0;
}
