module reviews

go 1.21
