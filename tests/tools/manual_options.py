#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares the manual page of each command with its --help, which is made from the option table.

usage: manual_options.py BLKIMG MANUAL-FOLDER COMMAND...

The SYNOPSIS must have the same forms: the same options in the same order, brackets and operands;
names of arguments may differ, words to choose from may not. Each option must be in the page's list
of options, or among the common options of blkimg(1), with an argument where it takes one, and the
list must have no others. Prints what differs; the exit status is 1 then.
"""
import re
import subprocess
import sys


def section(page, title):
    text = re.search(r'^\.S[hH] ' + title + r'\n(.*?)(?=^\.S[hH] |\Z)', page, re.M | re.S)
    return text.group(1) if text else ''


def plain_mdoc(line):
    """One macro line of mdoc as text."""
    closing = []
    out = ''
    glue = True
    for word in line[1:].replace('\\&', '').split():
        if word in ('Op', 'Oo'):
            out += ('' if glue else ' ') + '['
            glue = True
            if word == 'Op':
                closing.append(']')
        elif word == 'Oc':
            out += ']'
            glue = False
        elif word == 'Ns':
            glue = True
        elif word == 'Pf':
            continue
        elif word == '(':
            out += ('' if glue else ' ') + word
            glue = True
        elif word == 'Fl':
            out += ('' if glue else ' ') + '-'
            glue = True
        elif word in ('Ar', 'Cm', 'No', 'Nm'):
            continue
        else:
            out += ('' if glue else ' ') + word
            glue = False
    return out + ''.join(closing)


def plain_man(line):
    """One line of the man macros as text."""
    macro, _, rest = line.partition(' ')
    words = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', rest)]
    text = ('' if len(macro) == 3 else ' ').join(words)
    return text.replace('\\-', '-').replace('\\fI', '').replace('\\fR', '').replace('\\ ', ' ')


def manual_forms(page):
    """The forms in a page's SYNOPSIS, each as one line."""
    forms = []
    for line in section(page, 'SYNOPSIS').splitlines():
        if line.startswith('.Nm') or line.startswith('.B blkimg'):
            forms.append(line.partition('blkimg')[2].replace('\\-', '-'))
        elif line.startswith('.'):
            forms[-1] += ' ' + (plain_mdoc(line) if re.match(r'\.[A-Z][a-z]\b', line) else plain_man(line))
        else:
            forms[-1] += ' ' + re.sub(r'\\f[BIR]', '', line).replace('\\-', '-')
    return [normal(form) for form in forms]


def normal(form):
    """Without what may differ: where lines break, and how the argument of an option is called."""
    form = ' '.join(form.split())
    # A choice is lower-case words with a bar between them.
    return re.sub(r'(?<![\w-])(--?[A-Za-z-]+)([= ])(?!\|)([\w,=.]+?)(?=\.\.\.|[\])\s]|$)(?!\|)',
                  r'\1\2ARG', form)


def help_forms(text):
    usage = text.partition('\n\n')[0]
    forms = re.split(r'^(?:usage:|   or:) blkimg ', usage, flags=re.M)[1:]
    return [normal(form) for form in forms]


def help_options(text):
    """The rows of a --help: letter or '', name, whether an argument follows."""
    rows = re.findall(r'^  (?:(-\w), |    )(--[a-z-]+)(=?)', text, re.M)
    return [(letter, name, bool(argument)) for letter, name, argument in rows if name != '--help']


def manual_options(page):
    """The options that head an item of the page, with whether an argument follows."""
    options = {}
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if re.match(r'\.It .*\bFl\b', line):
            for word in re.split(r' , ', line[4:]):
                flag = re.match(r'(?:Fl|No) (-?[A-Za-z][A-Za-z-]*)(.*)', word)
                if flag:
                    options['-' + flag.group(1)] = bool(re.search(r'\b(Ar|Cm)\b|=', flag.group(2)))
        elif line.startswith('.B') and number and lines[number - 1] in ('.TP', '.TQ'):
            if line.startswith(('.B \\-', '.BR \\-')):
                for flag, argument in re.findall(r'(--?[A-Za-z][A-Za-z-]*)(=)?', plain_man(line)):
                    options[flag] = bool(argument)
    return options


def compare(blkimg, folder, command, common):
    with open(f'{folder}/blkimg-{command}.1', encoding='utf-8') as file:
        page = file.read()
    text = subprocess.run([blkimg, command, '--help'], check=True, capture_output=True, text=True).stdout
    wanted, found = help_forms(text), manual_forms(page)
    if wanted != found:
        yield 'SYNOPSIS:\n  page   ' + '\n         '.join(found) + '\n  --help ' + '\n         '.join(wanted)

    # Commands inside the io command's page have options of their own.
    listed = manual_options(page.partition('.SH COMMANDS')[0])
    known = {'-h', '--help'}
    for letter, name, takes in help_options(text):
        known |= {letter, name}
        found = [option for option in (letter, name) if option in listed]
        if not found and letter not in common and name not in common:
            yield f'{letter or name} is in no list of options'
        # Where both are listed the argument follows the name.
        elif found and listed[found[-1]] != takes:
            yield f'{found[-1]} {"takes an" if takes else "takes no"} argument'
    for option in listed:
        if option not in known:
            yield f'{option} is listed, but not taken'


def main():
    blkimg, folder, commands = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(f'{folder}/blkimg.1', encoding='utf-8') as file:
        common = manual_options(section(file.read(), 'COMMON OPTIONS'))
    problems = [f'blkimg-{command}(1): {problem}' for command in commands
                for problem in compare(blkimg, folder, command, common)]
    for problem in problems:
        print(problem)
    return 1 if problems or not commands else 0


if __name__ == '__main__':
    sys.exit(main())
