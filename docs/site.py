"""The web site has the folders of the repository, so that every link works in both."""

from pathlib import Path

from mkdocs.structure.files import File, Files

_PAGES = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/*.md')
_LINKED = ('docs/images/*', 'config/**/*')


def on_files(files, config):
    """Called by mkdocs: what it found in docs/ gives way to the files above, under their paths."""
    root = Path(config.config_file_path).parent
    kept = [file for file in files if file.src_dir != config.docs_dir]
    found = [path for pattern in (*_PAGES, *_LINKED) for path in sorted(root.glob(pattern))]
    names = [str(path.relative_to(root)) for path in found if path.is_file()]
    own = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    return Files([*kept, *own])
