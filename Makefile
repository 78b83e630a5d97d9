# SPDX-License-Identifier: MIT
# The whole build in one make. configure writes config.mk and config.h into the build folder,
# which may be this folder or any other (there it leaves a Makefile that includes this one).
#
#   make                 the program
#   make tests           and what the tests need
#   make check           all tests; FILTER=REGEX for some, JOBS=N in parallel
#   make V=1             show the commands

# The configure line is run again by make itself when configure changed.
include config.mk

config.mk: $(if $(srcdir),$(srcdir)/configure)
	$(if $(CONFIGURE),$(CONFIGURE),@echo 'Run ./configure first.' >&2; exit 1)

# S prefixes a source file; it is empty in the source folder, so that names stay short there.
S := $(if $(filter .,$(srcdir)),,$(srcdir)/)
find = $(patsubst $(S)%,%,$(sort $(wildcard $(addprefix $(S),$(1)))))

core_sources := $(call find,$(foreach level,* */* */*/*,blockcore/$(level).c drivers/$(level).c))
cmd_sources := $(call find,cmd/*.c cmd/*/*.c)
unit_sources := $(call find,tests/unit/test_*.c)
preload_sources := $(call find,tests/tools/*-preload.c)
tool_sources := $(filter-out $(preload_sources),$(call find,tests/tools/*.c))
man_pages := $(call find,man/*.1)

core_objects := $(core_sources:.c=.o)
cmd_objects := $(cmd_sources:.c=.o)
test_objects := $(unit_sources:.c=.o) $(tool_sources:.c=.o)
objects := $(core_objects) $(cmd_objects) $(test_objects)
unit_programs := $(unit_sources:.c=)
tool_programs := $(tool_sources:.c=)
preloads := $(preload_sources:.c=.so)
built := blkimg libblkcore.a $(unit_programs) $(tool_programs) $(preloads)

# The build folder comes first: the source folder may hold the config.h of another build.
includes := -I. $(if $(S),-I$(srcdir))
compile_flags = $(BASE_CFLAGS) $(includes) $(LIB_CFLAGS) $(CPPFLAGS) $(WARNINGS) $(HARDENING) $(CFLAGS) -pthread
link_flags = $(SANITIZE_FLAGS) $(PIE_LDFLAGS) -pthread $(CFLAGS) $(LDFLAGS)

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $@)

.PHONY: all tests check check-long install uninstall clean distclean dist
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

all: blkimg

tests: blkimg $(unit_programs) $(tool_programs) $(preloads)

$(objects): %.o: $(S)%.c config.mk
	$(call say,CC)
	@mkdir -p $(@D)
	$(Q)$(CC) $(compile_flags) $(SANITIZE_FLAGS) $(PIE_CFLAGS) -MMD -MP -c -o $@ $<

# Made from scratch each time: ar would keep the members of deleted sources.
libblkcore.a: $(core_objects)
	$(call say,AR)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

blkimg: $(cmd_objects) libblkcore.a
	$(call say,LINK)
	$(Q)$(CC) $(link_flags) -o $@ $^ $(LIBS)

$(unit_programs) $(tool_programs): %: %.o libblkcore.a
	$(call say,LINK)
	$(Q)$(CC) $(link_flags) -o $@ $^ $(LIBS)

# Never sanitized: the runtime belongs to the program that the object is loaded into. And as libc
# itself is seen by such an object: open and open64 are two functions, neither of them fortified.
$(preloads): %.so: $(S)%.c config.mk
	$(call say,SO)
	@mkdir -p $(@D)
	$(Q)$(CC) $(compile_flags) -fPIC -shared -MMD -MP -MF $*.d -MT $@ \
	    -U_FILE_OFFSET_BITS -U_FORTIFY_SOURCE $(LDFLAGS) -o $@ $< -ldl

check: tests
	@BUILDDIR='$(CURDIR)' $(S)tests/run $(if $(FILTER),'$(FILTER)')

# Random sequences, crash states and faults in full numbers: an hour or two.
long = BITMAP_SEQUENCES=300 BACKUP_HISTORIES=100 CHAINS=300 BACKUP_FAULTS=all BACKUP_GUEST_RUNS=20 \
    QCOW2_FUZZ=2000 QCOW2_CRASH_STATES=500 CRASH_STATES=150 FAULT_TABLE=100000 MEMORY_FAULTS=all
long_files = ^(crash-|fault-table|memory|.*random|bitmap-peer|backup-(chain|faults|guest)|qcow2-(check|hostile|interchange))
check-long: tests
	@BUILDDIR='$(CURDIR)' $(long) TEST_TIMEOUT=7200 RUN_TIMEOUT=14400 $(S)tests/run \
	    '$(or $(FILTER),$(long_files))'

install: all
	install -d '$(DESTDIR)$(bindir)' '$(DESTDIR)$(mandir)/man1'
	install -m 755 blkimg '$(DESTDIR)$(bindir)/blkimg'
	$(if $(man_pages),install -m 644 $(addprefix $(S),$(man_pages)) '$(DESTDIR)$(mandir)/man1')

uninstall:
	rm -f '$(DESTDIR)$(bindir)/blkimg' $(foreach page,$(notdir $(man_pages)),'$(DESTDIR)$(mandir)/man1/$(page)')

clean:
	rm -f $(built) $(objects) $(objects:.o=.d) $(preloads:.so=.d)

distclean: clean
	rm -f config.mk config.h config.log $(if $(S),Makefile)
	$(if $(S),@find blockcore cmd drivers tests -depth -type d -empty -delete 2>/dev/null || :)

# What is committed, and nothing else; the same bytes each time. The archive gets its name when it is
# complete.
dist: archive = blkimg-$(VERSION).tar.gz
dist:
	@[ -e $(srcdir)/.git ] || { echo 'make dist: $(srcdir) is not a git checkout' >&2; exit 1; }
	$(Q)git -C $(srcdir) archive --format=tar --prefix=blkimg-$(VERSION)/ -o $(CURDIR)/$(archive).tmp HEAD
	$(Q)gzip -n9 <$(archive).tmp >$(archive).gz.tmp && rm $(archive).tmp && mv $(archive).gz.tmp $(archive)

-include $(objects:.o=.d) $(preloads:.so=.d)
