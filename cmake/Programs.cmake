# Examples, benches and fuzz targets: one program per file, or per folder with a main.cc.
